"""Fast iteration over the modules of large models."""

from torch import nn


def named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns the modules of `model` with their paths: each once, in the order of `model.named_modules()`.

    Torch passes every module through one generator a level; a model of a thousand blocks is walked ten times until it
    is checked.
    """
    found: list[tuple[str, nn.Module]] = []
    seen: set[nn.Module] = set()
    waiting = [("", model)]
    while waiting:
        path, module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        found.append((path, module))
        if module._modules:
            prefix = f"{path}." if path else ""
            waiting += [
                (prefix + name, child) for name, child in reversed(module._modules.items()) if child is not None
            ]
    return found
