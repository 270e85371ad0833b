"""Mixer that is drawn in each step."""

import math
from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor, nn

from ml.config import REQUIRED, UNORDERED, configurable, require
from ml.layers.context import Context
from ml.layers.mixers.named_mixers import NamedMixers
from ml.layers.protocol import Drawn


@configurable
class StochasticMixer(NamedMixers, Drawn):
    """One of several mixers, drawn for each training step; a fixed one outside of training.

    A model trained this way works with any choice of them, layer by layer. The names are the scopes: `mixers = {'full':
    @Attention, 'linear': @GatedDeltaNet}` is configured by `full/...` and `linear/...`.

    Args:
        hidden_size: Width of the residual stream, H.
        mixers: Constructors of the mixers by name.
        weights: Relative probability of each mixer; None draws all with equal probability.
        main: Name of the mixer used outside of training; None is the first.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        mixers: dict[str, Callable[..., nn.Module]] = REQUIRED,
        weights: Annotated[dict[str, float], UNORDERED] | None = None,
        main: str | None = None,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        self._name_mixers(mixers)
        weights = dict.fromkeys(mixers, 1.0) if weights is None else weights
        require(weights.keys() == mixers.keys(), "weights", f"must be given for {', '.join(mixers)}")
        drawable = all(0.0 <= weight < math.inf for weight in weights.values()) and sum(weights.values()) > 0.0
        require(drawable, "weights", f"must be finite and not negative, nor all zero: {weights}")
        self.weights = [weights.get(name, 1.0) for name in self.names]
        require(main is None or main in mixers, "main", f"must be one of {', '.join(mixers)}, not {main}")
        self.main = self.names[0] if main is None else main
        self.drawn = self.main
        self._build_mixers(hidden_size, mixers)

    def fraction_of(self, child: str) -> float:
        """The probability that a mixer is drawn."""
        return self.weights[self.names.index(child)] / sum(self.weights)

    def draw(self, generator: torch.Generator) -> None:
        """Chooses the mixer of the steps until the next draw, by a generator of the CPU."""
        weights = torch.tensor(self.weights, dtype=torch.float64)
        self.drawn = self.names[int(torch.multinomial(weights, 1, generator=generator))]

    def forward(self, x: Tensor, context: Context) -> Tensor:
        return getattr(self, self.drawn if self.training else self.main)(x, context)

    def extra_repr(self) -> str:
        return f"main={self.main}, weights={self.weights}"
