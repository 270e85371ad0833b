"""Linear layer, and several linear layers over one input."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ml.config import configurable, require
from ml.layers.adapted import Adapted
from ml.layers.children import bias_child, optional_child, weight_child
from ml.layers.initialization import Initialization, normal, zeros
from ml.layers.linear_kernels import LinearKernel
from ml.layers.protocol import Adapter, NoProducts
from ml.layers.weight_gradient import linear


@configurable
class Linear(Adapted):
    """y = x Wᵀ + b, with W of shape (out_features, in_features).

    Args:
        in_features: Size of the input.
        out_features: Size of the output.
        bias: Adds b, (out_features), to the output.
        weight_initialization: Initialization of W.
        bias_initialization: Initialization of b.
        apply_peft: Adapter (`@LoRA`, `@DoRA`) whose output is added to that of the layer; None adds none.
        kernel: Matrix product with W, such as `@Float8`; None multiplies in the dtype of the input.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    weight: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        weight_initialization: Initialization = normal,
        bias_initialization: Initialization = zeros,
        apply_peft: Callable[..., Adapter] | None = None,
        kernel: Callable[..., LinearKernel] | None = None,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        self.in_features = in_features
        self.out_features = out_features
        self.weight = weight_child((out_features, in_features), weight_initialization)
        self.bias = bias_child(bias, out_features, bias_initialization)
        self.adapter = optional_child("adapter", apply_peft, in_features, out_features)
        self.kernel = optional_child("kernel", kernel)
        if self.kernel is not None:
            problem = self.kernel.misfit(in_features, out_features)
            require(problem is None, "kernel", f"does not fit the layer: {problem}")

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel is None:
            return self.adapted(x, linear(x, self.weight, self.bias))
        y = self.kernel(x, self.weight)
        return self.adapted(x, y if self.bias is None else y + self.bias.to(y.dtype))

    def adapted(self, x: Tensor, y: Tensor) -> Tensor:
        """The output with the adapter, given `y`, that of weight and bias."""
        adapter = self.active_adapter
        return y if adapter is None else adapter.adapted(x, y, self.weight, self.bias)

    def whole_weight(self) -> Tensor:
        """The weight with the adapter, (out, in)."""
        return self.adapted_weight(self.weight)

    def training_flops_per_token(self, sequence_length: int) -> float:
        """Two operations an entry of W forward, four backward."""
        return 6.0 * self.in_features * self.out_features

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


@configurable
class Projections(NoProducts):
    """Several linear layers over the same input: (x W₁ᵀ + b₁, x W₂ᵀ + b₂, ...).

    The layers belong to the parent, each with its own name, bias, scales and adapter.

    Args:
        layers: The linear layers.
        fused: Computes them as one matrix product over the concatenated weights; parameters and their names do not
            change.
    """

    def __init__(self, layers: Sequence[nn.Module], *, fused: bool = False):
        super().__init__()
        self.layers = tuple(layers)  # not registered: they belong to the parent
        self.fused = fused
        others = {type(layer).__name__ for layer in self.layers if not isinstance(layer, Linear)}
        require(not (fused and others), "fused", f"needs Linear layers, not {', '.join(sorted(others))}")
        kernels = {type(layer.kernel).__name__ for layer in self.layers if isinstance(layer, Linear) and layer.kernel}
        require(
            not (fused and kernels), "fused", f"needs layers without a kernel, not with {', '.join(sorted(kernels))}"
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.as_one_product(x) if self.fused else tuple(layer(x) for layer in self.layers)

    def as_one_product(self, x: Tensor) -> tuple[Tensor, ...]:
        """The outputs by a single product."""
        layers = [layer for layer in self.layers if isinstance(layer, Linear)]  # all of them, see `__init__`
        y = F.linear(x, torch.cat([layer.weight for layer in layers]), _biases(layers))
        parts = y.split([layer.out_features for layer in layers], dim=-1)
        return tuple(layer.adapted(x, part) for layer, part in zip(layers, parts, strict=True))

    def extra_repr(self) -> str:
        return f"fused={self.fused}"


def _biases(layers: Sequence[Linear]) -> Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    return torch.cat(
        [layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers]
    )
