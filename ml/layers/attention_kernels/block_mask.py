"""Block masks of FlexAttention, made from the first and last positions and documents of each block.

`torch.nn.attention.flex_attention.create_block_mask` evaluates the mask for every query and key, (T, S), unless it is
compiled. Here a block is compared with a block, so that making a mask for 8,192 tokens takes 64 x 64 comparisons, no
compilation, and no synchronization of the device.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK_SIZE = 128


class _Blocks(NamedTuple):
    """The first and the last position of each block, (blocks) each."""

    first: Tensor
    last: Tensor

    @property
    def is_complete(self) -> Tensor:
        return self.last - self.first == BLOCK_SIZE - 1


def block_mask(
    num_queries: int,
    num_keys: int,
    causal: bool,
    window_size: int | None,
    documents: Tensor | None,
    device: torch.device,
) -> "BlockMask":
    """Returns the blocks of `visible_keys`: those in which all is visible, and those that need the mask itself."""
    from torch.nn.attention.flex_attention import BlockMask  # takes a second to import

    before = num_keys - num_queries
    queries, keys = _blocks(before, num_queries, device), _blocks(0, num_keys, device)
    visible, whole = _visible_blocks(queries, keys, causal, window_size)  # (1, query blocks, key blocks)
    if documents is not None:
        has_same, is_same = _blocks_of_documents(queries, keys, documents)  # (B, query blocks, key blocks)
        visible, whole = visible & has_same, whole & is_same
    return BlockMask.from_kv_blocks(
        *_ordered(visible & ~whole),
        *_ordered(whole),
        BLOCK_SIZE=BLOCK_SIZE,
        mask_mod=_mask_mod(before, causal, window_size, documents),
        seq_lengths=(num_queries, num_keys),
    )


def _blocks(start: int, length: int, device: torch.device) -> _Blocks:
    first = torch.arange(start, start + length, BLOCK_SIZE, device=device)
    return _Blocks(first, (first + BLOCK_SIZE - 1).clamp(max=start + length - 1))


def _visible_blocks(queries: _Blocks, keys: _Blocks, causal: bool, window_size: int | None) -> tuple[Tensor, Tensor]:
    """Pairs of blocks with a visible key, and pairs in which all keys are visible: (1, queries, keys) each."""
    nearest = queries.first[:, None] - keys.last  # distance of the key before the query, the smallest in the blocks
    farthest = queries.last[:, None] - keys.first
    visible = torch.ones_like(nearest, dtype=torch.bool)
    whole = queries.is_complete[:, None] & keys.is_complete
    if causal:
        visible, whole = visible & (farthest >= 0), whole & (nearest >= 0)
    if window_size is not None:
        visible = visible & (nearest < window_size) & (farthest > -window_size)
        whole = whole & (farthest < window_size) & (nearest > -window_size)
    return visible[None], whole[None]


def _blocks_of_documents(queries: _Blocks, keys: _Blocks, documents: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of blocks with a document in common, and pairs within a single document: (B, queries, keys) each."""
    changes = documents[:, 1:] != documents[:, :-1]
    numbers = torch.nn.functional.pad(changes.cumsum(1), (1, 0))  # of the document of each token: 0, 1, ...
    first, last = numbers[:, queries.first][..., None], numbers[:, queries.last][..., None]
    others_first, others_last = numbers[:, keys.first][:, None], numbers[:, keys.last][:, None]
    in_common = (first <= others_last) & (others_first <= last)
    return in_common, (first == others_last) & (others_first == last)


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The number of true entries of each row, (B, 1, rows), and the columns with those of true entries first."""
    columns = blocks.to(torch.int32).argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[:, None], columns.to(torch.int32)[:, None]


def _mask_mod(
    before: int, causal: bool, window_size: int | None, documents: Tensor | None
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The mask of one query and key, as FlexAttention asks for it."""

    def is_visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        position = query + before
        visible = position >= key if causal else key >= 0
        if window_size is not None:
            visible = visible & (position - key < window_size) & (key - position < window_size)
        if documents is not None:
            visible = visible & (documents[batch, position] == documents[batch, key])
        return visible

    return is_visible
