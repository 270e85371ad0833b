"""The gated short convolution."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from ml.config import child, configurable
from ml.layers.context import Context
from ml.layers.convolution import CausalConvolution
from ml.layers.linear import Linear, Projections
from ml.layers.protocol import Mixer


@configurable
class ShortConvolutionMixer(Mixer):
    """Gated short convolution: y = output(C(x) · convolution(B(x) · x(x))) (LFM2).

    Args:
        hidden_size: Width of the residual stream, H.
        convolution: Constructor of the convolution, by default with three taps and no activation.
        linear: Constructor of the projections.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    causal = True
    decodes = True
    separates_documents = True

    def __init__(
        self,
        hidden_size: int,
        *,
        convolution: Callable[..., nn.Module] = CausalConvolution,
        linear: Callable[..., nn.Module] = Linear,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        self.B = child("B", linear, hidden_size, hidden_size)
        self.C = child("C", linear, hidden_size, hidden_size)
        self.x = child("x", linear, hidden_size, hidden_size)
        self.projections = child("projections", Projections, (self.B, self.C, self.x))
        defaults = {"kernel_size": 3, "bias": False, "activation": None}
        self.convolution = child("convolution", convolution, hidden_size, defaults=defaults)
        self.output = child("output", linear, hidden_size, hidden_size)

    def mixing_children(self) -> Mapping[str, nn.Module]:
        """The convolution."""
        return {"convolution": self.convolution}

    def forward(self, x: Tensor, context: Context) -> Tensor:
        B, C, x = self.projections(x)  # (B, T, H)
        return self.output(C * self.convolution(B * x, context))

    def training_flops_per_token(self, sequence_length: int) -> float:
        """Zero: products are those of the children."""
        return 0.0
