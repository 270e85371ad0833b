"""Rotary position embedding."""

import torch
from torch import Tensor, nn

from ml.config import configurable, require
from ml.layers.checks import positive_float


@configurable
class Rotary(nn.Module):
    """Turns the pair (x_i, x_{i + D/2}) of a head by the angle position · theta^(-2i/D) (Su et al. 2021, equation 34).

    The pairing of the two halves is that of GPT-NeoX and Llama. The angles are computed in float32 whatever the dtype
    of the model, and from nothing stored, so that no conversion of the model can round them.
    """

    def __init__(self, head_size: int, *, theta: float = 10_000.0):
        super().__init__()
        require(head_size % 2 == 0, "head_size", f"must be even to be rotated in pairs, not {head_size}")
        self.head_size = head_size
        self.theta = positive_float("theta", theta)

    def forward(self, query: Tensor, key: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rotates (B, T, N, D) and (B, T, K, D); `positions` is (T), (B, T), or None for 0, 1, ..., T-1."""
        if positions is None:
            positions = torch.arange(query.shape[1], device=query.device)
        cos, sin = self.cos_and_sin(positions)
        return rotate(query, cos, sin), rotate(key, cos, sin)

    def cos_and_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Returns float32 cosines and sines of shape (*positions.shape, 1, D / 2)."""
        exponents = torch.arange(0, self.head_size, 2, device=positions.device, dtype=torch.float32) / self.head_size
        angles = positions[..., None, None].float() * (1.0 / self.theta**exponents)
        return angles.cos(), angles.sin()

    def extra_repr(self) -> str:
        return f"{self.head_size}, theta={self.theta}"


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the two halves of `x` (..., T, N, D) by angles of cosines and sines (..., T, 1, D / 2)."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
