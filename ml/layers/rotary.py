"""Rotary position embeddings, and the ways in which they are stretched to longer sequences.

The angles are computed in float32 whatever the dtype of the model, and from nothing stored, so that no conversion of
the model can round them.
"""

import math

import torch
from torch import Tensor

from ml.config import configurable, require
from ml.layers.checks import positive, positive_float
from ml.layers.protocol import NoProducts


class RotaryEmbedding(NoProducts):
    """Base class of rotary embeddings: turns pairs of the first `fraction` of a head by angles; the rest stays.

    Attributes:
        num_axes: The coordinates of a position: 1 in a text, 2 (row and column) in an image.
    """

    num_axes: int = 1

    attention_factor = 1.0  # multiplies query and key

    def __init__(self, head_size: int, theta: float, fraction: float, interleaved: bool):
        super().__init__()
        self.head_size = head_size
        self.theta = positive_float("theta", theta)
        require(0.0 < fraction <= 1.0, "fraction", f"must be above 0 and at most 1, not {fraction}")
        self.rotary_size = int(head_size * fraction)
        part = "head_size" if fraction == 1.0 else f"fraction of head_size {head_size}"
        is_even = self.rotary_size % 2 == 0 and self.rotary_size > 0
        name = "head_size" if fraction == 1.0 else "fraction"
        require(is_even, name, f"must be even to be rotated in pairs, not {self.rotary_size} ({part})")
        self.interleaved = interleaved

    def forward(self, query: Tensor, key: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rotates (B, T, N, D) and (B, T, K, D); `positions` is (T), (B, T), or None for 0, 1, ..., T-1."""
        if positions is None:
            positions = torch.arange(query.shape[1], device=query.device)
        angles = self.angles(positions)[..., None, :]  # (..., T, 1, R / 2)
        cos, sin = angles.cos() * self.attention_factor, angles.sin() * self.attention_factor
        return self.turn(query, cos, sin), self.turn(key, cos, sin)

    def turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Turns the rotated part of `x` (..., T, N, D) by angles of cosines and sines (..., T, 1, R / 2)."""
        if self.rotary_size == self.head_size:
            return rotate(x, cos, sin, self.interleaved)
        turned, rest = x.split((self.rotary_size, self.head_size - self.rotary_size), dim=-1)
        return torch.cat((rotate(turned, cos, sin, self.interleaved), rest), dim=-1)

    def angles(self, positions: Tensor) -> Tensor:
        """Float32 angles (*positions.shape, R / 2)."""
        return positions[..., None].float() * self.frequencies(positions)

    def frequencies(self, positions: Tensor) -> Tensor:
        """Angles for each position, (R / 2): theta^(-2i/R)."""
        return frequencies_of(self.theta, self.rotary_size, positions.device)

    def extra_repr(self) -> str:
        return f"{self.head_size}, theta={self.theta:g}, rotary_size={self.rotary_size}, interleaved={self.interleaved}"


def frequencies_of(theta: float | Tensor, size: int, device: torch.device) -> Tensor:
    """theta^(-2i/size) for i = 0, 1, ..., size / 2 - 1, in float32."""
    exponents = torch.arange(0, size, 2, device=device, dtype=torch.float32) / size
    return 1.0 / theta**exponents


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Turns pairs of `x` (..., T, N, R) by angles of cosines and sines (..., T, 1, R / 2).

    A pair is (x_i, x_{i + R/2}) as in GPT-NeoX and Llama, or (x_{2i}, x_{2i + 1}) where they are interleaved as in the
    paper.
    """
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1) if interleaved else x.chunk(2, dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)


@configurable
class Rotary(RotaryEmbedding):
    """Turns pair i of a head by the angle position · theta^(-2i/R) (Su et al. 2021, equation 34).

    fraction: of the head that is rotated, R/D; the rest carries no position (GPT-NeoX). interleaved: pairs are
    neighbours, as in the paper, and not the two halves, as in Llama.
    """

    def __init__(self, head_size: int, *, theta: float = 10_000.0, fraction: float = 1.0, interleaved: bool = False):
        super().__init__(head_size, theta, fraction, interleaved)


@configurable
class LinearRotary(RotaryEmbedding):
    """Rotary with positions divided by `factor` (Chen et al. 2023, position interpolation)."""

    def __init__(
        self,
        head_size: int,
        *,
        factor: float = 2.0,
        theta: float = 10_000.0,
        fraction: float = 1.0,
        interleaved: bool = False,
    ):
        super().__init__(head_size, theta, fraction, interleaved)
        self.factor = positive_float("factor", factor)

    def frequencies(self, positions: Tensor) -> Tensor:
        return super().frequencies(positions) / self.factor


@configurable
class DynamicRotary(RotaryEmbedding):
    """Rotary whose theta grows with the sequence: dynamic NTK-aware interpolation (Peng et al. 2023, appendix A.2).

    theta' = theta · (factor · L / original_length - (factor - 1))^(R / (R - 2)) for a sequence of length L, the largest
    position and one, once L is above `original_length`. All positions of a pass are turned by the same theta', so that
    keys kept from a shorter pass differ from those of a longer one.
    """

    def __init__(
        self,
        head_size: int,
        *,
        factor: float = 2.0,
        original_length: int = 4096,
        theta: float = 10_000.0,
        fraction: float = 1.0,
        interleaved: bool = False,
    ):
        super().__init__(head_size, theta, fraction, interleaved)
        self.factor = positive_float("factor", factor)
        require(factor >= 1.0, "factor", f"must be at least 1, not {factor}")
        self.original_length = positive("original_length", original_length)
        require(self.rotary_size > 2, "fraction", "must leave more than one pair to rotate")

    def frequencies(self, positions: Tensor) -> Tensor:
        length = (positions.max() + 1).clamp(min=self.original_length).float()
        growth = self.factor * length / self.original_length - (self.factor - 1)
        theta = self.theta * growth ** (self.rotary_size / (self.rotary_size - 2))
        return frequencies_of(theta, self.rotary_size, positions.device)


@configurable
class Llama3Rotary(RotaryEmbedding):
    """Rotary whose slow pairs are slowed by `factor` and whose fast pairs stay (Llama 3.1; its published code).

    A pair whose wave is longer than original_length / low_frequency_factor is slowed, one whose wave is shorter than
    original_length / high_frequency_factor stays, and between the two it is interpolated.
    """

    def __init__(
        self,
        head_size: int,
        *,
        factor: float = 8.0,
        low_frequency_factor: float = 1.0,
        high_frequency_factor: float = 4.0,
        original_length: int = 8192,
        theta: float = 500_000.0,
        fraction: float = 1.0,
        interleaved: bool = False,
    ):
        super().__init__(head_size, theta, fraction, interleaved)
        self.factor = positive_float("factor", factor)
        self.low = positive_float("low_frequency_factor", low_frequency_factor)
        self.high = positive_float("high_frequency_factor", high_frequency_factor)
        message = f"must be above low_frequency_factor ({low_frequency_factor}), not {high_frequency_factor}"
        require(self.low < self.high, "high_frequency_factor", message)
        self.original_length = positive("original_length", original_length)

    def frequencies(self, positions: Tensor) -> Tensor:
        frequencies = super().frequencies(positions)
        turns = self.original_length * frequencies / (2 * math.pi)  # of a pair over the original length
        kept = ((turns - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
        return frequencies * (kept + (1 - kept) / self.factor)


@configurable
class YarnRotary(RotaryEmbedding):
    """Rotary stretched by YaRN (Peng et al. 2023, sections 3.2 to 3.4).

    Pairs that turn more than `beta_fast` times over `original_length` stay, those that turn less than `beta_slow` times
    are slowed by `factor`, with a ramp over the pairs between. Query and key are multiplied by `attention_factor`; None
    is 0.1 ln(factor) + 1. truncate: the ends of the ramp are rounded to whole pairs, as in the paper's code.
    """

    def __init__(
        self,
        head_size: int,
        *,
        factor: float = 4.0,
        beta_fast: float = 32.0,
        beta_slow: float = 1.0,
        attention_factor: float | None = None,
        original_length: int = 4096,
        truncate: bool = True,
        theta: float = 10_000.0,
        fraction: float = 1.0,
        interleaved: bool = False,
    ):
        super().__init__(head_size, theta, fraction, interleaved)
        self.factor = positive_float("factor", factor)
        self.original_length = positive("original_length", original_length)
        self.beta_slow = positive_float("beta_slow", beta_slow)
        self.beta_fast = positive_float("beta_fast", beta_fast)
        message = f"must be above beta_slow ({beta_slow}), not {beta_fast}"
        require(self.beta_slow < self.beta_fast, "beta_fast", message)
        require(self.theta != 1.0, "theta", "must not be 1: all pairs would turn alike")
        self.truncate = truncate
        if attention_factor is None:
            self.attention_factor = 0.1 * math.log(self.factor) + 1.0 if self.factor > 1.0 else 1.0
        else:
            self.attention_factor = positive_float("attention_factor", attention_factor)

    def frequencies(self, positions: Tensor) -> Tensor:
        frequencies = super().frequencies(positions)
        first, last = self.pair_that_turns(self.beta_fast), self.pair_that_turns(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, self.rotary_size - 1)
        pairs = torch.arange(self.rotary_size // 2, device=positions.device, dtype=torch.float32)
        slowed = ((pairs - first) / max(last - first, 0.001)).clamp(0.0, 1.0)
        return frequencies * (1 - slowed + slowed / self.factor)

    def pair_that_turns(self, times: float) -> float:
        """The index of the pair that turns so many times over the original length."""
        wave = self.original_length / (2 * math.pi * times)
        return self.rotary_size * math.log(wave) / (2 * math.log(self.theta))


@configurable
class TwoDimensionalRotary(RotaryEmbedding):
    """Rotary for the patches of an image: even pairs turn with the row, odd ones with the column (Pixtral 2024).

    Pair i has the frequency theta^(-2i/D); pairs of rows come first in each half of the head.
    """

    num_axes = 2

    def __init__(self, head_size: int, *, theta: float = 10_000.0):
        super().__init__(head_size, theta, fraction=1.0, interleaved=False)
        require(head_size % 4 == 0, "head_size", f"must be a multiple of 4 for rows and columns, not {head_size}")

    def forward(self, query: Tensor, key: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rotates (B, T, N, D) and (B, T, K, D) by the rows and columns (T, 2) or (B, T, 2) of the patches."""
        if positions is None or positions.shape[-1] != 2:
            raise ValueError("TwoDimensionalRotary needs rows and columns: it is for the patches of images")
        return super().forward(query, key, positions)

    def angles(self, positions: Tensor) -> Tensor:
        frequencies = self.frequencies(positions)
        rows, columns = positions.float().unbind(-1)
        return torch.cat((rows[..., None] * frequencies[::2], columns[..., None] * frequencies[1::2]), dim=-1)
