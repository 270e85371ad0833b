"""LongRoPE, a rotary embedding with a factor for each pair of channels."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ml.config import REQUIRED, configurable, require
from ml.layers.checks import positive, positive_float
from ml.layers.rotary import RotaryByLength, frequencies_of


@configurable
class LongRotary(RotaryByLength):
    """Rotary with each frequency divided by its own factor: LongRoPE (Ding et al. 2024; Phi-3).

    Sequences and packed documents up to `original_length` take the short factors, longer ones the long factors. Keys
    cached before that length is passed are wrong after it: generation passes all tokens through the model again there.

    Args:
        head_size: Size of a head, D.
        long_factors: Divisors of the frequencies, R / 2, or one for all.
        short_factors: Divisors up to the original length; None takes the long ones for every length.
        factor: Longest sequence over the original length.
        attention_factor: Factor of query and key; None is √(1 + ln(factor) / ln(original_length)).
        original_length: Sequence length of pretraining, in tokens.
        theta: Base of the frequencies.
        fraction: Fraction of the head that is rotated, R / D; the rest carries no position (GPT-NeoX).
        interleaved: Rotates pairs of adjacent channels, as in the paper, instead of the two halves, as in Llama.
    """

    def __init__(
        self,
        head_size: int,
        *,
        long_factors: Sequence[float] = REQUIRED,
        short_factors: Sequence[float] | None = None,
        factor: float = 1.0,
        attention_factor: float | None = None,
        original_length: int = 4096,
        theta: float = 10_000.0,
        fraction: float = 1.0,
        interleaved: bool = False,
    ):
        super().__init__(head_size, theta, fraction, interleaved)
        self.long_factors = self._checked("long_factors", long_factors)
        self.short_factors = None if short_factors is None else self._checked("short_factors", short_factors)
        self.depends_on_length = short_factors is not None
        self.original_length = positive("original_length", original_length)
        self.switch_length = None if short_factors is None else self.original_length
        factor = positive_float("factor", factor)
        require(factor == 1.0 or self.original_length > 1, "original_length", "must be above 1 where factor is not 1")
        if attention_factor is not None:
            self.attention_factor = positive_float("attention_factor", attention_factor)
        elif factor > 1.0 and self.original_length > 1:
            self.attention_factor = math.sqrt(1.0 + math.log(factor) / math.log(self.original_length))

    def _checked(self, name: str, factors: Sequence[float]) -> tuple[float, ...]:
        count = self.rotary_size // 2
        fits = len(factors) in (1, count)
        require(fits, name, f"must be {count}, one for each pair, or one for all, not {len(factors)}")
        require(all(0.0 < factor < math.inf for factor in factors), name, "must be positive and finite")
        return tuple(factor if 0.0 < factor < math.inf else 1.0 for factor in factors) if fits else (1.0,)

    def frequencies_of_lengths(self, lengths: Tensor) -> Tensor:
        frequencies = frequencies_of(self.theta, self.rotary_size, lengths.device)
        long = frequencies / _on_device(self.long_factors, lengths.device)
        if self.short_factors is None:
            return long
        short = frequencies / _on_device(self.short_factors, lengths.device)
        return long.where((lengths > self.original_length)[..., None], short)


def _on_device(factors: Sequence[float], device: torch.device) -> Tensor:
    """Factors as a tensor, without a copy from the host, which would synchronize."""
    return torch.stack([torch.full((), factor, device=device) for factor in factors])
