"""Summary of a model: its tree with parameter counts, FLOPs and memory."""

from collections.abc import Iterator, Mapping

from torch import nn

from ml.models.flops import flops_per_token

_WIDTH = 96  # of the tree, before the counts


def summarize(model: nn.Module, sequence_length: int, kept: Mapping[str, int]) -> str:
    """The tree of modules, adjacent equal ones on one line, and below it the totals.

    FLOPs are those of training on one token (forward and backward) in a sequence of `sequence_length`. The memory is
    that of the weights, their gradients and the bytes that are `kept` for training; activations come on top.
    """
    count = sum(p.numel() for p in model.parameters())
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    memory = {**memory_of_model(model), **kept}
    flops = flops_per_token(model, sequence_length)
    work = f"{flops:.3e} (training, at sequence length {sequence_length})" if flops is not None else "unknown"
    lines = [
        *_tree(type(model).__name__, model, ""),
        "",
        f"parameters        {count:,}" + (f", of which {frozen:,} are frozen" if frozen else ""),
        f"FLOPs per token   {work}",
        f"memory            {size_text(sum(memory.values()))} ({', '.join(memory)}; without activations)",
    ]
    return "\n".join(lines)


def memory_of_model(model: nn.Module) -> dict[str, int]:
    """Bytes of the weights and of the gradients of those that are trained."""
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in model.parameters()]
    return {
        "weights": sum(size for size, _ in sizes),
        "gradients": sum(size for size, is_trained in sizes if is_trained),
    }


def size_text(num_bytes: float) -> str:
    """Number of bytes in the largest unit in which it is at least one."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def _tree(label: str, module: nn.Module, indent: str) -> Iterator[str]:
    count = sum(p.numel() for p in module.parameters())
    extra = module.extra_repr()
    text = f"{indent}{label}" + (f" ({extra})" if extra else "")
    yield f"{text:<{_WIDTH}} {count:>15,}" if count else text
    for names, child in _equal_runs(module):
        name = names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]} ({len(names)} times)"
        yield from _tree(f"{name}: {type(child).__name__}", child, indent + "  ")


def _equal_runs(module: nn.Module) -> Iterator[tuple[list[str], nn.Module]]:
    """The children, those that follow an equal one of the same numbered name together with it."""
    groups: list[tuple[list[str], nn.Module, tuple]] = []
    for name, child in module.named_children():
        shape = (name.rstrip("0123456789"), repr(child), [(p.shape, p.requires_grad) for p in child.parameters()])
        if groups and groups[-1][2] == shape and shape[0] != name:
            groups[-1][0].append(name)
        else:
            groups.append(([name], child, shape))
    return ((names, child) for names, child, _ in groups)
