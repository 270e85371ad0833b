"""Blocks of queries with the keys that they see, and the weights of one block."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ml.layers.attention_kernels.visibility import document_ends

BLOCK_SIZE = 128


class Block(NamedTuple):
    """A block of queries of some rows, and the keys that any of them sees.

    Attributes:
        rows: Rows of the batch.
        groups: The same in (B K): rows and key heads flattened.
        queries: The queries of the block.
        keys: The keys.
        offset: Position of the first query, counted from the first key.
    """

    rows: slice
    groups: slice
    queries: slice
    keys: slice
    offset: int


class Scores(NamedTuple):
    """Scores of queries (B K, N / K, T, D) and keys.

    Attributes:
        keys: (B K, S, D).
        sinks: (B K, N / K), or None.
        documents: (B, S), or None.
        causal: Masks later keys.
        window_size: Keys visible to a query; None is all.
        scale: Factor of the scores.
        soft_cap: Cap of the scores, or None.
        num_queries: T.
    """

    keys: Tensor
    sinks: Tensor | None
    documents: Tensor | None
    causal: bool
    window_size: int | None
    scale: float
    soft_cap: float | None
    num_queries: int

    def blocks(self) -> list[Block]:
        """All queries, a block at a time; on a CPU each row by itself where the keys of a block end with a document."""
        starts = range(0, self.num_queries, BLOCK_SIZE)
        stops = [min(start + BLOCK_SIZE, self.num_queries) for start in starts]
        everything = slice(0, self.keys.shape[0])
        if self.documents is None or self.documents.device.type != "cpu":
            all_rows = slice(0, 1 if self.documents is None else len(self.documents))
            return [self._block(all_rows, everything, *ends) for ends in zip(starts, stops, strict=True)]
        before = self.keys.shape[1] - self.num_queries
        first, end = document_ends(self.documents)
        first, end = first[:, before:][:, list(starts)], end[:, before:][:, [stop - 1 for stop in stops]]
        num_heads = self.keys.shape[0] // len(self.documents)
        return [
            self._block(slice(row, row + 1), slice(row * num_heads, (row + 1) * num_heads), *ends)
            for row, limits in enumerate(zip(first.tolist(), end.tolist(), strict=True))
            for ends in zip(starts, stops, *limits, strict=True)
        ]

    def _block(
        self, rows: slice, groups: slice, start: int, stop: int, first: int = 0, end: int | None = None
    ) -> Block:
        """The queries from `start` to `stop`, whose documents reach from key `first` to `end`."""
        num_keys = self.keys.shape[1]
        reach = num_keys if self.window_size is None else self.window_size - 1
        before = num_keys - self.num_queries  # keys before the first query
        first = max(before + start - reach, first)
        last = before + stop if self.causal else min(before + stop + reach, num_keys if end is None else end)
        return Block(rows, groups, slice(start, stop), slice(first, last), before + start - first)

    def weights(self, query: Tensor, block: Block) -> tuple[Tensor, Tensor | None]:
        """softmax over the visible keys: (B K, G, C, D) -> (B K, G C, S), and the capped scores if there is a cap."""
        capped = None
        key = self.keys[block.groups, block.keys]
        scores = torch.baddbmm(query.new_empty(()), query.flatten(1, 2), key.mT, beta=0, alpha=self.scale)
        if self.soft_cap is not None:
            capped = scores = self.soft_cap * torch.tanh(scores / self.soft_cap)
            scores = scores.clone()
        hidden = self.hidden(query.shape[2], block)
        if hidden is not None:
            by_row = scores.view(len(hidden), -1, *query.shape[1:3], key.shape[1])  # (B or 1, K, G, C, S)
            by_row.masked_fill_(hidden[:, None, None], -math.inf)
        if self.sinks is None:
            return torch.softmax(scores, dim=-1), capped
        column = self.sinks[block.groups].to(scores.dtype)[:, :, None].expand(*query.shape[:3])
        column = column.reshape(*scores.shape[:2], 1)
        return torch.softmax(torch.cat((scores, column), dim=-1), dim=-1)[..., :-1], capped

    def hidden(self, num_queries: int, block: Block) -> Tensor | None:
        """(B or 1, C, S), true where a query must not see a key; None where all see all."""
        if not self.causal and self.window_size is None and self.documents is None:
            return None
        num_keys = block.keys.stop - block.keys.start
        places = torch.arange(max(num_keys, block.offset + num_queries), device=self.keys.device)
        distance = places[block.offset : block.offset + num_queries, None] - places[:num_keys]
        hidden = torch.zeros_like(distance, dtype=torch.bool)
        if self.causal:
            hidden |= distance < 0
        if self.window_size is not None:
            hidden |= distance.abs() >= self.window_size
        if self.documents is None:
            return hidden[None]
        documents = self.documents[block.rows]
        of_keys = documents[:, block.keys]
        first = block.keys.start + block.offset
        of_queries = documents[:, first : first + num_queries]
        return hidden | (of_queries[:, :, None] != of_keys[:, None])


def grouped(x: Tensor, num_kv_heads: int) -> Tensor:
    """(B, N, T, D) -> (B K, N / K, T, D): query heads grouped with those that share their key."""
    return x.contiguous().view(x.shape[0] * num_kv_heads, -1, *x.shape[2:])


def flat(x: Tensor) -> Tensor:
    """(B, K, S, D) -> (B K, S, D)."""
    return x.contiguous().view(-1, *x.shape[2:])


def of_groups(sinks: Tensor | None, rows: Tensor) -> Tensor | None:
    """(N) -> (B K, N / K): the sink of each head of `rows`."""
    if sinks is None:
        return None
    per_batch = sinks.view(-1, rows.shape[1])  # (K, N / K)
    return per_batch.repeat(rows.shape[0] // per_batch.shape[0], 1)
