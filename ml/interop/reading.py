"""Tensors of a checkpoint read into a model, straight into its memory where dtype and arrangement allow it."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ml.distributed import weights_changed
from ml.distributed.shards import Shard, local, shard_of
from ml.interop.errors import InteropError
from ml.interop.placement import Placement
from ml.interop.stored_tensors import DTYPES, StoredTensor
from ml.interop.tensors import Placed, Same, Shape
from ml.training.state import named_weights

_THREADS = 4  # a read copies from the cache of files or waits for a disk, both without the interpreter
_CONVERTED = 1 << 24  # bytes converted at once


class Direct(NamedTuple):
    """Rows of a tensor that are read where they belong.

    Attributes:
        stored: The tensor.
        rows: Memory of this process for them, of the dtype of the file.
        first: Index of the first of them.
    """

    stored: StoredTensor
    rows: Tensor
    first: int


@torch.no_grad()
def load_weights(found: Placement, model: nn.Module, config: Mapping[str, Any]) -> None:
    """Reads the tensors of a checkpoint into a model; each process what it holds.

    Those with the arrangement and dtype of the model are read straight into its memory, several at a time. Of the
    others there is one in memory at a time, or a part of it.

    Args:
        found: The tensors and their places.
        model: The model, changed in place; its weights keep their dtypes.
        config: The fields of config.json.

    Raises:
        InteropError: A file is damaged, or tied weights differ.
    """
    for first, second in found.equal:
        if (first.shape, first.dtype, first.sha256()) != (second.shape, second.dtype, second.sha256()):
            raise InteropError("config.json#tie_word_embeddings is true, and the checkpoint has another head")
    weights = named_weights(model)
    direct: list[Direct] = []
    others: list[tuple[StoredTensor, Placed, list[Tensor | None]]] = []
    for stored, one in sorted(found.read, key=lambda item: (str(item[0].file), item[0].offset)):
        targets = [weights.get(name) for name in one.ours]
        rows = _direct(stored, one, targets)
        if rows is not None:
            direct.append(rows)
        elif any(target is not None and local(target).numel() for target in targets):
            others.append((stored, one, targets))
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda one: one.stored.read_rows(one.rows, one.first), direct))
    for stored, one, targets in others:
        _read(stored, one, targets, config)
    weights_changed(model)


def _direct(stored: StoredTensor, one: Placed, targets: Sequence[Tensor | None]) -> Direct | None:
    """Returns the memory into which a tensor is read as it is; None if it is rearranged, converted or copied."""
    target = targets[0]
    if not isinstance(one.layout, Same) or target is None:
        return None
    there, (first, is_whole) = local(target), _rows_of(stored, target)
    fits = there.dtype == DTYPES[stored.dtype] and there.is_contiguous() and there.device.type == "cpu"
    return Direct(stored, there, first) if is_whole and fits and there.numel() else None


def _rows_of(stored: StoredTensor, target: Tensor) -> tuple[int, bool]:
    """Returns the first row of a tensor that this process holds, and whether it holds whole rows."""
    shard = shard_of(target)
    return (shard.offsets[0] if shard.offsets else 0), shard.sizes[1:] == stored.shape[1:]


def _read(stored: StoredTensor, one: Placed, targets: Sequence[Tensor | None], config: Mapping[str, Any]) -> None:
    only = targets[0]
    if isinstance(one.layout, Same) and only is not None:
        _read_converted(stored, only)
        return
    shapes = [() if target is None else tuple(target.shape) for target in targets]
    if any(target is None for target in targets):
        shapes = _known_shapes(stored, one, shapes)
    for target, piece in zip(targets, one.layout.split(stored.read(), shapes, config), strict=True):
        if target is not None:
            _copy_share(piece, target, *one.layout.share)


def _copy_share(piece: Tensor, target: Tensor, index: int, count: int) -> None:
    """Copies an equal share of the rows of a tensor into the part of it that this process holds."""
    if count == 1:
        local(target).copy_(shard_of(target).of(piece))
        return
    place, rows = share_in_shard(shard_of(target), index, piece.shape[0])
    place.of(local(target)).copy_(rows.of(piece))


def share_in_shard(shard: Shard, index: int, num_rows: int) -> tuple[Shard, Shard]:
    """Returns the common rows of a shard and a share of a tensor, as a block of either; both may be empty.

    Args:
        shard: A block of the tensor.
        index: Index of the share.
        num_rows: Rows of a share.
    """
    first, start, size = index * num_rows, shard.offsets[0], shard.sizes[0]
    low = min(max(first, start), start + size)
    high = max(low, min(first + num_rows, start + size))
    sizes = (high - low, *shard.sizes[1:])
    others = shard.offsets[1:]
    return Shard((low - start, *(0 for _ in others)), sizes), Shard((low - first, *others), sizes)


def _known_shapes(stored: StoredTensor, one: Placed, shapes: list[Shape]) -> list[Shape]:
    """Replaces the shapes of tensors that another process holds."""
    assert len({shape for shape in shapes if shape}) == 1, f"{stored} is divided among processes in unequal parts"
    known = next(shape for shape in shapes if shape)
    return [shape or known for shape in shapes]


def _read_converted(stored: StoredTensor, target: Tensor) -> None:
    """Reads what this process holds of one tensor into a weight of another dtype, device or memory format."""
    there, (first, is_whole) = local(target), _rows_of(stored, target)
    if not is_whole or not stored.shape:
        there.copy_(shard_of(target).of(stored.read()))
        return
    count = max(1, _CONVERTED // max(1, stored.row_bytes))
    for start in range(0, len(there), count):
        part = there[start : start + count]
        rows = torch.empty(part.shape, dtype=DTYPES[stored.dtype], device="cpu")
        stored.read_rows(rows, first + start)
        part.copy_(rows)
