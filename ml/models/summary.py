"""A model for a person to read: its tree with parameter counts, its FLOPs and its memory."""

from collections.abc import Iterator

from torch import nn

from ml.models.flops import flops_per_token


def summarize(model: nn.Module, sequence_length: int) -> str:
    """The tree of modules, equal neighbours on one line, and below it the totals.

    FLOPs are those of training on one token (forward and backward) in a sequence of `sequence_length`. The memory is
    that of the weights, their gradients and the two moments of AdamW; activations come on top.
    """
    parameters = {id(p): p for p in model.parameters()}.values()
    total = sum(p.numel() for p in parameters)
    trained = [p for p in parameters if p.requires_grad]
    state = sum(p.numel() * p.element_size() for p in parameters) + 3 * sum(
        p.numel() * p.element_size() for p in trained
    )
    frozen = total - sum(p.numel() for p in trained)
    lines = [
        *_tree(type(model).__name__, model, ""),
        "",
        f"parameters        {total:,}" + (f", of which {frozen:,} are frozen" if frozen else ""),
        f"FLOPs per token   {flops_per_token(model, sequence_length):.3e} (training, at sequence length {sequence_length})",
        f"memory            {_bytes(state)} (weights, gradients, AdamW moments; without activations)",
    ]
    return "\n".join(lines)


def _tree(label: str, module: nn.Module, indent: str) -> Iterator[str]:
    count = sum(p.numel() for p in module.parameters())
    extra = module.extra_repr()
    text = f"{indent}{label}" + (f" ({extra})" if extra else "")
    yield f"{text:<88} {count:>15,}" if count else text
    for names, child in _equal_neighbours(module):
        name = names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]} ({len(names)} times)"
        yield from _tree(f"{name}: {type(child).__name__}", child, indent + "  ")


def _equal_neighbours(module: nn.Module) -> Iterator[tuple[list[str], nn.Module]]:
    group: list[str] = []
    first, shape = None, None
    for name, child in module.named_children():
        here = (repr(child), [(p.shape, p.requires_grad) for p in child.parameters()])
        if first is not None and here == shape and name.rstrip("0123456789") != name:
            group.append(name)
            continue
        if first is not None:
            yield group, first
        group, first, shape = [name], child, here
    if first is not None:
        yield group, first


def _bytes(count: int) -> str:
    size, unit = float(count), 0
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    while size >= 1024 and unit < len(units) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.1f} {units[unit]}"
