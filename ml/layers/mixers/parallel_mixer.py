"""Several mixers side by side."""

from collections.abc import Callable
from typing import Annotated

from torch import Tensor, nn

from ml.config import REQUIRED, UNORDERED, configurable, require
from ml.layers.checks import finite
from ml.layers.context import Context
from ml.layers.mixers.named_mixers import NamedMixers


@configurable
class ParallelMixer(NamedMixers):
    """Sum of several mixers of the same input: y = Σ_i output_scale_i · mixer_i(input_scale_i · x) (Falcon-H1, Hymba).

    The names are the scopes: `mixers = {'attention': @Attention, 'ssm': @Mamba2}` is configured by `attention/...` and
    `ssm/...`.

    Args:
        hidden_size: Width of the residual stream, H.
        mixers: Constructors of the mixers by name.
        input_scales: Factor of the input of each mixer; None is 1 for all.
        output_scales: Factor of the output of each mixer; None is 1 for all.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        mixers: dict[str, Callable[..., nn.Module]] = REQUIRED,
        input_scales: Annotated[dict[str, float], UNORDERED] | None = None,
        output_scales: Annotated[dict[str, float], UNORDERED] | None = None,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        self._name_mixers(mixers)
        self.input_scales = self._checked("input_scales", input_scales)
        self.output_scales = self._checked("output_scales", output_scales)
        self._build_mixers(hidden_size, mixers)

    def _checked(self, parameter: str, scales: dict[str, float] | None) -> list[float]:
        if scales is None:
            return [1.0] * len(self.names)
        require(scales.keys() == set(self.names), parameter, f"must be given for {', '.join(self.names)}")
        return [finite(parameter, scales.get(name, 1.0)) for name in self.names]

    @property
    def num_branches(self) -> int:
        """One for each mixer."""
        return len(self.names)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        outputs = []
        for name, before, after in zip(self.names, self.input_scales, self.output_scales, strict=True):
            y = getattr(self, name)(x if before == 1.0 else before * x, context)
            outputs.append(y if after == 1.0 else after * y)
        return sum(outputs[1:], outputs[0])

    def extra_repr(self) -> str:
        return f"input_scales={self.input_scales}, output_scales={self.output_scales}"
