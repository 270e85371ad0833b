"""The short causal convolution of state-space and linear-attention mixers."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ml.config import configurable
from ml.layers.activations import Activation, silu
from ml.layers.checks import positive
from ml.layers.children import bias_child, optional_child, weight_child
from ml.layers.context import Context
from ml.layers.initialization import Initialization, fan_in_uniform, zeros
from ml.layers.protocol import Mixer


@configurable
class CausalConvolution(Mixer):
    """Short causal depthwise convolution: y_t = activation(Σ_k w_k · x_{t-K+1+k} + b).

    w has the shape (channels, 1, K) of a grouped `torch.nn.Conv1d`. A tap that reaches into another document, or before
    the first token, reads 0.

    Args:
        channels: Number of channels, C.
        kernel_size: Number of taps, K.
        bias: Adds b, (channels), to the output.
        activation: Activation of the output; None applies none.
        weight_initialization: Initialization of w.
        bias_initialization: Initialization of b.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    causal = True
    decodes = True
    separates_documents = True

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 4,
        bias: bool = True,
        activation: Activation | None = silu,
        weight_initialization: Initialization = fan_in_uniform,
        bias_initialization: Initialization = zeros,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        self.channels = channels
        self.kernel_size = positive("kernel_size", kernel_size)
        self.weight = weight_child((channels, 1, self.kernel_size), weight_initialization)
        self.bias = bias_child(bias, channels, bias_initialization)
        self.activation = optional_child("activation", activation)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        reach = self.kernel_size - 1
        stretch = self._with_previous(x, context)  # (B, K - 1 + T, C)
        if context.cache is not None:
            # A copy, so that the cache does not keep the whole stretch in memory.
            context.keep(self, stretch[:, stretch.shape[1] - reach :].clone())
        y = causal_convolution(stretch, self.weight, self.bias, context.previous_documents(reach))
        return y if self.activation is None else self.activation(y)  # (B, T, C)

    def _with_previous(self, x: Tensor, context: Context) -> Tensor:
        """The K - 1 previous inputs, zeros at the start, followed by `x`."""
        kept = context.state(self)
        if kept is None:
            return F.pad(x, (0, 0, self.kernel_size - 1, 0))
        return torch.cat((kept, x), dim=1)

    def training_flops_per_token(self, sequence_length: int) -> float:
        """Two operations a tap forward, four backward."""
        return 6.0 * self.channels * self.kernel_size

    def extra_repr(self) -> str:
        return f"{self.channels}, kernel_size={self.kernel_size}, bias={self.bias is not None}"


def causal_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, documents: Tensor | None = None) -> Tensor:
    """Convolves (B, K - 1 + T, C), the first K - 1 of them for their taps only, to (B, T, C).

    weight: (C, 1, K). bias: (C). documents: (B, K - 1 + T); None where all is one document. The taps are added in
    sequence: on the CPU, torch's convolutions take two to four times as long forward and backward.
    """
    num_taps = weight.shape[-1]
    length = x.shape[1] - num_taps + 1
    taps = weight.squeeze(1).T.to(x.dtype)  # (K, C)
    y = x[:, num_taps - 1 :] * taps[-1]
    if bias is not None:
        y = y + bias.to(x.dtype)
    for tap in range(num_taps - 1):
        seen = x[:, tap : tap + length]
        if documents is not None:
            same = documents[:, tap : tap + length] == documents[:, num_taps - 1 :]
            seen = seen.where(same[..., None], 0)  # not multiplied: 0 · inf is nan
        y = torch.addcmul(y, seen, taps[tap])
    return y
