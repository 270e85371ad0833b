"""Layers between an image and a sequence of vectors."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ml.config import child, configurable, require
from ml.layers.activations import Activation, gelu
from ml.layers.checks import positive
from ml.layers.children import optional_child
from ml.layers.embedding import PositionEmbedding
from ml.layers.linear import Linear
from ml.layers.protocol import Layer, NoProducts


@configurable
class PatchEmbedding(NoProducts):
    """Patch embedding: x_i = norm(W patch_i + b + position_i), for each patch i of an image (Dosovitskiy et al. 2020,
    equation 1).

    W acts on patches as vectors (C, rows, columns), so this is a convolution with stride `patch_size`. Patches are in
    row-major order, from the top left.

    Args:
        hidden_size: Width of the encoder, H.
        image_size: Height and width of an image, in pixels.
        patch_size: Height and width of a patch, in pixels.
        num_channels: Number of color channels.
        linear: Constructor of the projection.
        position: Constructor of the learned position embedding; None leaves positions to the mixers.
        normalization: Constructor of the output normalization; None applies none.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    projection: Any  # a layer with a weight

    def __init__(
        self,
        hidden_size: int,
        *,
        image_size: tuple[int, int] = (64, 64),
        patch_size: int = 16,
        num_channels: int = 3,
        linear: Callable[..., nn.Module] = Linear,
        position: Callable[..., Layer] | None = PositionEmbedding,
        normalization: Callable[..., nn.Module] | None = None,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        self.num_channels = positive("num_channels", num_channels)
        self.patch_size = positive("patch_size", patch_size)
        height, width = (positive("image_size", size) for size in image_size)
        divides = height % self.patch_size == 0 and width % self.patch_size == 0
        require(divides, "patch_size", f"must divide the image_size {height} x {width}, not be {patch_size}")
        self.image_size = height, width
        self.grid = max(height // self.patch_size, 1), max(width // self.patch_size, 1)
        self.projection = child("projection", linear, self.num_channels * self.patch_size**2, hidden_size)
        self.position = optional_child("position", position, hidden_size, num_positions=self.num_patches)
        self.norm = optional_child("norm", normalization, hidden_size)

    @property
    def num_patches(self) -> int:
        """Number of patches of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.num_channels, *self.image_size

    def forward(self, images: Tensor) -> Tensor:
        """Images (I, C, height, width) to patches (I, P, H).

        Raises:
            ValueError: They are of another size.
        """
        if images.dim() != 4 or images.shape[1:] != self.image_shape:
            raise ValueError(f"images must have the shape (I, {str(self.image_shape)[1:]}, not {tuple(images.shape)}")
        x = self.projection(self.flat_patches(images.to(self.projection.weight.dtype)))  # (I, P, H)
        if self.position is not None:
            x = x + self.position(self.num_patches, None)
        return x if self.norm is None else self.norm(x)

    def flat_patches(self, images: Tensor) -> Tensor:
        """(I, C, height, width) -> (I, P, C · patch_size²)."""
        size = self.patch_size
        patches = images.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # (I, C, rows, size, columns, size)
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def positions(self, device: torch.device) -> Tensor:
        """Row and column of each patch: (P, 2)."""
        rows, columns = (torch.arange(length, device=device) for length in self.grid)
        return torch.cartesian_prod(rows, columns)

    def extra_repr(self) -> str:
        height, width = self.image_size
        return f"{height}x{width}x{self.num_channels}, patch_size={self.patch_size}, num_patches={self.num_patches}"


@configurable
class Projector(NoProducts):
    """Two-layer projection from one width to another: y = second(activation(first(x))) (Liu et al. 2023, LLaVA-1.5).

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        intermediate_size: Width between the two layers; None is that of the output.
        activation: Constructor of the activation.
        linear: Constructor of the projections.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        intermediate_size: int | None = None,
        activation: Activation = gelu,
        linear: Callable[..., nn.Module] = Linear,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        intermediate_size = out_features if intermediate_size is None else intermediate_size
        intermediate_size = positive("intermediate_size", intermediate_size)
        self.activation = child("activation", activation)
        self.first = child("first", linear, in_features, intermediate_size)
        self.second = child("second", linear, intermediate_size, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.activation(self.first(x)))  # (..., in) -> (..., out)
