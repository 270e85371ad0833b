"""Attention with linear biases (ALiBi, Press et al. 2021)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_DIGITS = 256  # a position in this base has digits that are exact in bfloat16
ALIBI_WIDTH = 8  # added channels: two are used, and kernels take multiples of 8


@dataclass(frozen=True)
class AlibiHeads:
    """Heads of a layer that are computed here.

    Attributes:
        first: The first one.
        count: Their number.
        total: Number of heads of the layer.
    """

    first: int
    count: int
    total: int

    def slopes(self, device: torch.device) -> Tensor:
        """Slope of each head, (count), in float64 and without a copy from the host.

        The slope is 2^(-8 n / N) where N is a power of two; other numbers add slopes of twice as many heads.
        """
        whole = 2 ** math.floor(math.log2(self.total))
        head = torch.arange(self.first, self.first + self.count, dtype=torch.float64, device=device)
        between = 4.0 * (2.0 * (head - whole) + 1.0) / whole
        return torch.exp2(-torch.where(head < whole, 8.0 * (head + 1.0) / whole, between))


def with_linear_biases(
    query: Tensor, key: Tensor, heads: AlibiHeads, positions: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Channels whose products add slope · (position of the key) to the scores, of any attention kernel.

    That differs from slope · (position of the key - position of the query) by the same for all keys of a query, which
    the softmax cancels.

    Args:
        query: (B, T, N, D).
        key: (B, T, K, D).
        heads: The heads, N.
        positions: (T) or (B, T); None is 0, 1, ..., T-1.
        scale: Factor of the other scores.

    Returns:
        The queries, multiplied by the scale, and the keys, (B, T, N, D + 8) and (B, T, K, D + 8); the kernel's own
        scale is 1.
    """
    if positions is None:
        positions = torch.arange(query.shape[1], device=query.device)
    digits = torch.stack((positions // _DIGITS, positions % _DIGITS), dim=-1)[..., None, :]  # (..., T, 1, 2)
    steep = heads.slopes(query.device)
    of_heads = torch.stack((_DIGITS * steep, steep), dim=-1).to(query.dtype)  # (N, 2)
    of_query = F.pad(of_heads, (0, ALIBI_WIDTH - 2)).expand(*query.shape[:-1], -1)
    of_key = F.pad(digits.to(key.dtype), (0, ALIBI_WIDTH - 2)).expand(*key.shape[:-1], -1)
    return torch.cat((query * scale, of_query), dim=-1), torch.cat((key, of_key), dim=-1)


def with_scaled_biases(
    query: Tensor, key: Tensor, heads: AlibiHeads, positions: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """As `with_linear_biases`, with biases that are rounded to bfloat16 and multiplied by the scale.

    A rounded bias is no product of a slope and a position, so a key has a channel for each of the heads that share it,
    at most `ALIBI_WIDTH`.
    """
    if positions is None:
        positions = torch.arange(query.shape[1], device=query.device)
    num_sharing = heads.count // key.shape[2]
    slopes = heads.slopes(query.device).to(torch.bfloat16)
    biases = positions.to(torch.bfloat16)[..., None] * slopes  # (..., T, N)
    of_key = biases.unflatten(-1, (-1, num_sharing)).to(key.dtype)  # (..., T, K, N / K)
    of_key = F.pad(of_key, (0, ALIBI_WIDTH - num_sharing)).expand(*key.shape[:-1], -1)
    channels = torch.arange(heads.count, device=query.device) % num_sharing
    of_query = F.one_hot(channels, ALIBI_WIDTH).to(query.dtype) * scale  # (N, 8)
    return torch.cat((query * scale, of_query.expand(*query.shape[:-1], -1)), dim=-1), torch.cat((key, of_key), dim=-1)
