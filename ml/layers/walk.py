"""Fast iteration over the modules of large models.

Torch passes every module through one generator a level; a model of a thousand blocks is walked a dozen times until it
is checked.
"""

from torch import nn


def named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns the modules of `model` with their paths: each once, in the order of `model.named_modules()`."""
    found: list[tuple[str, nn.Module]] = []
    seen: set[nn.Module] = set()
    waiting = [("", model)]
    while waiting:
        path, module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        found.append((path, module))
        children = module._modules
        if children:
            prefix = f"{path}." if path else ""
            for name in reversed(children):
                child = children[name]
                if child is not None:
                    waiting.append((prefix + name, child))
    return found


def all_modules(model: nn.Module) -> list[nn.Module]:
    """Returns the modules of `model`: each once, in the order of `model.modules()`."""
    found: dict[nn.Module, None] = {}
    waiting: list[nn.Module | None] = [model]
    while waiting:
        module = waiting.pop()
        if module is None or module in found:
            continue
        found[module] = None
        if module._modules:
            waiting += reversed(module._modules.values())
    return list(found)
