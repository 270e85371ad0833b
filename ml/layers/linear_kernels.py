"""Matrix products of linear layers: in float8 instead of the dtype of the input."""

import abc
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ml.config import configurable

_ALIGNMENT = 16  # of float8 products
_LEAST = 1e-12  # lower bound of a largest magnitude
_E4M3, _E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
_ADA, _HOPPER = (8, 9), (9, 0)  # CUDA compute capabilities


class LinearKernel(abc.ABC):
    """Computes the product of a linear layer, and those of its gradients."""

    @abc.abstractmethod
    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """x (..., in) times the transpose of weight (out, in), (..., out)."""

    def misfit(self, in_features: int, out_features: int) -> str | None:
        """Returns why the kernel cannot multiply with a weight of a shape; None if it can."""
        return None

    def warning(self, device: torch.device) -> str | None:
        """Returns a warning about products on a device; None if there is nothing to warn of."""
        return None


@configurable
class Float8(LinearKernel):
    """Products in float8 with dynamic scales, forward and backward (Micikevicius et al., 2022, arXiv:2209.05433).

    Each operand is divided by its largest magnitude over that of its dtype and rounded to float8; `torch._scaled_mm`
    multiplies and accumulates in float32. A device without float8 products rounds in the same way and multiplies in
    the dtype of the input, which is slower than no float8 at all. Sizes must be multiples of 16.

    Args:
        scaling: "tensorwise" has one scale an operand, and rounds the gradient of the output to e5m2; "rowwise" has one
            for each row or column along the sum, and rounds everything to e4m3.
    """

    def __init__(self, scaling: Literal["tensorwise", "rowwise"] = "tensorwise"):
        self.is_rowwise = scaling == "rowwise"

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        if problem := self.misfit(weight.shape[1], weight.shape[0]):
            raise ValueError(problem)
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(dtype), weight.to(dtype)
        if x.numel() == 0:
            return F.linear(x, weight)
        y = _Product.apply(x.flatten(0, -2), weight, self.is_rowwise, not self._is_native(x.device))
        return y.unflatten(0, x.shape[:-1])

    def misfit(self, in_features: int, out_features: int) -> str | None:
        if in_features % _ALIGNMENT == 0 and out_features % _ALIGNMENT == 0:
            return None
        return (
            f"Float8 needs sizes that are multiples of {_ALIGNMENT}, not {in_features} inputs to {out_features} outputs"
        )

    def warning(self, device: torch.device) -> str | None:
        if self._is_native(device):
            return None
        return f"{device.type} has no float8 products: @Float8 is emulated, slower than the products that it replaces"

    def _is_native(self, device: torch.device) -> bool:
        if device.type != "cuda" or not torch.cuda.is_available() or torch.version.hip is not None:
            return False
        return torch.cuda.get_device_capability(device) >= (_HOPPER if self.is_rowwise else _ADA)


class _Product(torch.autograd.Function):
    """y = x Wᵀ; ∂x = ∂y W; ∂W = ∂yᵀ x, each by `scaled_product`."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, is_rowwise: bool, is_emulated: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options = (is_rowwise, is_emulated)
        return scaled_product(x, weight.t(), _E4M3, *ctx.options)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, weight = ctx.saved_tensors
        dtype = _E4M3 if ctx.options[0] else _E5M2
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = scaled_product(gradient, weight, dtype, *ctx.options)
        if ctx.needs_input_grad[1]:
            padding = (0, 0, 0, -len(x) % _ALIGNMENT)  # the sum over tokens is aligned, too
            rows, columns = F.pad(gradient, padding).t(), F.pad(x, padding)
            of_weight = scaled_product(rows, columns, dtype, *ctx.options)
        return of_x, of_weight, None, None


def scaled_product(left: Tensor, right: Tensor, dtype: torch.dtype, is_rowwise: bool, is_emulated: bool) -> Tensor:
    """Product of matrices that are rounded to float8.

    Args:
        left: (m, k).
        right: (k, n), rounded to e4m3.
        dtype: Dtype that `left` is rounded to.
        is_rowwise: Scales each row of `left` and each column of `right`, instead of whole matrices.
        is_emulated: Multiplies the rounded values in the dtype of `left`.

    Returns:
        (m, n) in the dtype of `left`.
    """
    left8, left_scale = _rounded(left, dtype, 1 if is_rowwise else None)
    right8, right_scale = _rounded(right, _E4M3, 0 if is_rowwise else None)
    if is_emulated:
        product = left8.to(left.dtype) @ right8.to(left.dtype)
        return (product.float() * left_scale * right_scale).to(left.dtype)
    output = torch.bfloat16 if is_rowwise else left.dtype  # what `torch._scaled_mm` has on Hopper
    right8 = right8.t().contiguous().t()
    return torch._scaled_mm(left8.contiguous(), right8, left_scale, right_scale, out_dtype=output).to(left.dtype)


def _rounded(x: Tensor, dtype: torch.dtype, dim: int | None) -> tuple[Tensor, Tensor]:
    """Rounds to float8; returns the values and their scale, in float32, along a dimension or of the whole matrix."""
    largest = x.abs().amax() if dim is None else x.abs().amax(dim, keepdim=True)
    limit = torch.finfo(dtype).max
    scale = largest.float().clamp(min=_LEAST) / limit
    return (x.float() / scale).clamp(-limit, limit).to(dtype), scale
