"""A model for a person to read: its tree with parameter counts, its FLOPs and its memory."""

from collections.abc import Iterator, Mapping

from torch import nn

from ml.models.flops import flops_per_token

_WIDTH = 96  # of the tree, before the counts


def summarize(model: nn.Module, sequence_length: int, kept: Mapping[str, int]) -> str:
    """The tree of modules, equal neighbours on one line, and below it the totals.

    FLOPs are those of training on one token (forward and backward) in a sequence of `sequence_length`. The memory is
    that of the weights, their gradients and the bytes that are `kept` for training; activations come on top.
    """
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    count = sum(p.numel() for p in parameters)
    frozen = count - sum(p.numel() for p in trained)
    memory = _num_bytes(parameters) + _num_bytes(trained) + sum(kept.values())
    parts = ", ".join(("weights", "gradients", *kept))
    flops = flops_per_token(model, sequence_length)
    lines = [
        *_tree(type(model).__name__, model, ""),
        "",
        f"parameters        {count:,}" + (f", of which {frozen:,} are frozen" if frozen else ""),
        f"FLOPs per token   {flops:.3e} (training, at sequence length {sequence_length})",
        f"memory            {_size(memory)} ({parts}; without activations)",
    ]
    return "\n".join(lines)


def _tree(label: str, module: nn.Module, indent: str) -> Iterator[str]:
    count = sum(p.numel() for p in module.parameters())
    extra = module.extra_repr()
    text = f"{indent}{label}" + (f" ({extra})" if extra else "")
    yield f"{text:<{_WIDTH}} {count:>15,}" if count else text
    for names, child in _equal_neighbours(module):
        name = names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]} ({len(names)} times)"
        yield from _tree(f"{name}: {type(child).__name__}", child, indent + "  ")


def _equal_neighbours(module: nn.Module) -> Iterator[tuple[list[str], nn.Module]]:
    """The children, those that follow an equal one of the same numbered name together with it."""
    groups: list[tuple[list[str], nn.Module, tuple]] = []
    for name, child in module.named_children():
        shape = (name.rstrip("0123456789"), repr(child), [(p.shape, p.requires_grad) for p in child.parameters()])
        if groups and groups[-1][2] == shape and shape[0] != name:
            groups[-1][0].append(name)
        else:
            groups.append(([name], child, shape))
    return ((names, child) for names, child, _ in groups)


def _num_bytes(parameters: list[nn.Parameter]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


def _size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"
