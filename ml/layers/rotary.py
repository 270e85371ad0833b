"""Rotary position embeddings, and their extensions to longer sequences.

The angles are computed in float32 whatever the dtype of the model, and from nothing stored, so that no conversion of
the model can round them. Their cosines and sines are computed once in a pass, for all layers that turn alike: in each
layer, and compiled into the rotation of every head, they took ten times as long as the rotation on a GPU.
"""

import math

import torch
from torch import Tensor, nn

from ml.config import configurable, require, unused
from ml.layers.checks import non_negative, positive, positive_float
from ml.layers.context import Context
from ml.layers.protocol import NoProducts
from ml.layers.tracing import has_values

_OF_TORCH = frozenset(vars(nn.Module()))


class RotaryEmbedding(NoProducts):
    """Base class of rotary embeddings: rotates pairs of the first `fraction` of a head by angles.

    Attributes:
        num_axes: The coordinates of a position: 1 in a text, 2 (row and column) in an image.
        depends_on_length: Whether the rotation of a position depends on the length of its sequence. Keys cached in
            earlier passes are then wrong, and attention with it decodes from a cache only where `switch_length` tells
            from which length on.
        switch_length: The only length above which all positions are rotated otherwise; None where there is none.
        softmax_factor: Factor of the softmax scale of latent attention.
    """

    num_axes: int = 1
    depends_on_length: bool = False
    switch_length: int | None = None

    attention_factor = 1.0  # multiplies query and key
    softmax_factor = 1.0

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
        self._settings: str | None = None

    def forward(self, query: Tensor, key: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rotates (B, T, N, D) and (B, T, K, D); `positions` is (T), (B, T), or None for 0, 1, ..., T-1."""
        return self.in_context(query, key, Context(positions))

    def in_context(self, query: Tensor, key: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Rotates as `forward`, at the positions of `context`."""
        cos, sin = self.table(context, query.shape[1], query.device)
        return self.turn(query, cos, sin), self.turn(key, cos, sin)

    def table(self, context: Context, num_tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the angles times `attention_factor`, float32 (..., T, 1, R / 2), once in a pass.

        Args:
            context: Of the pass.
            num_tokens: T.
            device: Of the activations.
        """

        def make() -> tuple[Tensor, Tensor]:
            positions = context.positions
            if positions is None:
                positions = torch.arange(num_tokens, device=device)
            angles = self.angles_in(context, positions)[..., None, :]
            return angles.cos() * self.attention_factor, angles.sin() * self.attention_factor

        if self._settings is None:
            if torch.compiler.is_compiling():  # without `Mixer.prepare`
                return make()
            self._settings = self._shown_settings()
        return context.once(self._settings, make)

    def _shown_settings(self) -> str:
        """Equal for rotary embeddings that turn alike."""
        own = {name: value for name, value in vars(self).items() if name not in _OF_TORCH}
        return f"{type(self).__module__}.{type(self).__qualname__} {own}"

    @property
    def decodes(self) -> bool:
        """True if cached keys stay right, as long as a sequence does not grow beyond `switch_length`."""
        return not self.depends_on_length or self.switch_length is not None

    def turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotates the leading part of `x` (..., T, N, D) by angles of cosines and sines (..., T, 1, R / 2)."""
        if self.rotary_size == self.head_size:
            return rotate(x, cos, sin, self.interleaved)
        turned, rest = x.split((self.rotary_size, self.head_size - self.rotary_size), dim=-1)
        return torch.cat((rotate(turned, cos, sin, self.interleaved), rest), dim=-1)

    def angles_in(self, context: Context, positions: Tensor) -> Tensor:
        """Float32 angles (..., T, R / 2) at positions (..., T) of a pass."""
        return self.angles(positions)

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
    """Rotates pairs of `x` (..., T, N, R) by angles of cosines and sines (..., T, 1, R / 2).

    A pair is (x_i, x_{i + R/2}) as in GPT-NeoX and Llama, or (x_{2i}, x_{2i + 1}) where they are interleaved as in the
    paper.
    """
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1) if interleaved else x.chunk(2, dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)


@configurable
class Rotary(RotaryEmbedding):
    """Rotates pair i of a head by the angle position · theta^(-2i/R) (Su et al. 2021, equation 34).

    Args:
        head_size: Size of a head, D.
        theta: Base of the frequencies.
        fraction: Fraction of the head that is rotated, R / D; the rest carries no position (GPT-NeoX).
        interleaved: Rotates pairs of adjacent channels, as in the paper, instead of the two halves, as in Llama.
    """

    def __init__(self, head_size: int, *, theta: float = 10_000.0, fraction: float = 1.0, interleaved: bool = False):
        super().__init__(head_size, theta, fraction, interleaved)


@configurable
class LinearRotary(RotaryEmbedding):
    """Rotary with positions divided by a factor (Chen et al. 2023, position interpolation).

    Args:
        head_size: Size of a head, D.
        factor: Divisor of the positions.
        theta: Base of the frequencies.
        fraction: Fraction of the head that is rotated, R / D; the rest carries no position (GPT-NeoX).
        interleaved: Rotates pairs of adjacent channels, as in the paper, instead of the two halves, as in Llama.
    """

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


class RotaryByLength(RotaryEmbedding):
    """Base class of rotary embeddings whose frequencies depend on the length of the sequence or packed document."""

    depends_on_length = True

    def angles_in(self, context: Context, positions: Tensor) -> Tensor:
        lengths = context.lengths()
        lengths = positions.amax(-1, keepdim=True) + 1 if lengths is None else lengths
        if self.switch_length is not None and context.cache is not None and context.cache.num_tokens:
            self._require_one_side(positions[..., 0], lengths[..., 0], self.switch_length)
        return positions[..., None].float() * self.frequencies_of_lengths(lengths)

    def _require_one_side(self, before: Tensor, after: Tensor, limit: int) -> None:
        """Requires that no sequence with `before` cached tokens grows beyond a limit.

        Raises:
            ValueError: One does. On a GPU this stops the program at some later call, for the host does not wait to read
                the lengths.
        """
        is_right = ((before == 0) | (before > limit) | (after <= limit)).all()
        if not has_values(is_right) or torch.compiler.is_compiling():
            return
        if is_right.device.type != "cpu":
            torch._assert_async(is_right, "a cached sequence grows beyond LongRotary.original_length")
        elif not is_right:
            name = f"{type(self).__name__}.original_length ({limit})"
            raise ValueError(f"a cached sequence grows beyond {name}: pass all of its tokens with a new cache")

    def frequencies(self, positions: Tensor) -> Tensor:
        return self.frequencies_of_lengths(positions.max() + 1)

    def frequencies_of_lengths(self, lengths: Tensor) -> Tensor:
        """Angles for each position of sequences of these lengths: (...) to (..., R / 2)."""
        raise NotImplementedError


@configurable
class DynamicRotary(RotaryByLength):
    """Rotary whose theta grows with the sequence: dynamic NTK-aware interpolation (Peng et al. 2023, appendix A.2).

    theta' = theta · (factor · L / original_length - (factor - 1))^(R / (R - 2)) for a sequence or packed document of
    length L above `original_length`, where L is its largest position plus one. All its positions are rotated by the
    same theta', so keys cached in a shorter pass differ from those of a longer one.

    Args:
        head_size: Size of a head, D.
        factor: Growth of theta with the sequence length; at least 1.
        original_length: Sequence length of pretraining, in tokens.
        theta: Base of the frequencies.
        fraction: Fraction of the head that is rotated, R / D; the rest carries no position (GPT-NeoX).
        interleaved: Rotates pairs of adjacent channels, as in the paper, instead of the two halves, as in Llama.
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

    def frequencies_of_lengths(self, lengths: Tensor) -> Tensor:
        relative = lengths.clamp(min=self.original_length).float() / self.original_length
        growth = self.factor * relative - (self.factor - 1)
        theta = self.theta * growth ** (self.rotary_size / (self.rotary_size - 2))
        return frequencies_of(theta[..., None], self.rotary_size, lengths.device)


@configurable
class Llama3Rotary(RotaryEmbedding):
    """Rotary with low frequencies divided by `factor` and high frequencies unchanged (Llama 3.1; its published code).

    A pair with a wavelength above original_length / low_frequency_factor is slowed, one with a wavelength below
    original_length / high_frequency_factor is unchanged, and those between are interpolated.

    Args:
        head_size: Size of a head, D.
        factor: Divisor of the low frequencies.
        low_frequency_factor: Rotations over the original length up to which a pair is fully slowed.
        high_frequency_factor: Rotations over the original length from which a pair is unchanged.
        original_length: Sequence length of pretraining, in tokens.
        theta: Base of the frequencies.
        fraction: Fraction of the head that is rotated, R / D; the rest carries no position (GPT-NeoX).
        interleaved: Rotates pairs of adjacent channels, as in the paper, instead of the two halves, as in Llama.
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
    """Rotary extended to longer sequences by YaRN (Peng et al. 2023, sections 3.2 to 3.4).

    Pairs with more than `beta_fast` rotations over `original_length` are unchanged, those with fewer than `beta_slow`
    are slowed by `factor`, with a linear ramp over the pairs between.

    Args:
        head_size: Size of a head, D.
        factor: Divisor of the low frequencies.
        beta_fast: Rotations from which a pair is unchanged.
        beta_slow: Rotations up to which a pair is fully slowed.
        attention_factor: Factor of query and key; None is m(mscale) / m(mscale_all_dim), with
            m(s) = 0.1 s ln(factor) + 1.
        mscale: s of the rotated channels (DeepSeek-V2).
        mscale_all_dim: s of all channels, whose m² multiplies the softmax scale of `LatentAttention` (1.0 in
            DeepSeek-V3).
        original_length: Sequence length of pretraining, in tokens.
        truncate: Rounds the ends of the ramp to whole pairs, as in the paper's code.
        theta: Base of the frequencies.
        fraction: Fraction of the head that is rotated, R / D; the rest carries no position (GPT-NeoX).
        interleaved: Rotates pairs of adjacent channels, as in the paper, instead of the two halves, as in Llama.
    """

    def __init__(
        self,
        head_size: int,
        *,
        factor: float = 4.0,
        beta_fast: float = 32.0,
        beta_slow: float = 1.0,
        attention_factor: float | None = None,
        mscale: float = 1.0,
        mscale_all_dim: float = 0.0,
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
        of_all = self._temperature(non_negative("mscale_all_dim", mscale_all_dim))
        self.softmax_factor = of_all**2
        unused(attention_factor is not None, "mscale", "attention_factor")
        self.attention_factor = self._temperature(non_negative("mscale", mscale)) / of_all
        if attention_factor is not None:
            self.attention_factor = positive_float("attention_factor", attention_factor)

    def _temperature(self, mscale: float) -> float:
        """0.1 mscale ln(factor) + 1."""
        return 0.1 * mscale * math.log(self.factor) + 1.0 if self.factor > 1.0 else 1.0

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
        """Index of the pair with this number of rotations over the original length."""
        wave = self.original_length / (2 * math.pi * times)
        return self.rotary_size * math.log(wave) / (2 * math.log(self.theta))


@configurable
class TwoDimensionalRotary(RotaryEmbedding):
    """Rotary for the patches of an image: even pairs rotate with the row, odd ones with the column (Pixtral 2024).

    Pair i has the frequency theta^(-2i/D); pairs of rows come first in each half of the head.

    Args:
        head_size: Size of a head, D; a multiple of 4.
        theta: Base of the frequencies.
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
