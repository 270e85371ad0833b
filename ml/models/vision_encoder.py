"""Vision encoder: from images to vectors in the positions of tokens."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from ml.blocks.repeat import Repeat
from ml.config import REQUIRED, child, configurable, require
from ml.layers.checks import positive
from ml.layers.children import optional_child
from ml.layers.context import Auxiliary, Context
from ml.layers.normalization import RMSNorm
from ml.layers.protocol import Mixer, NoProducts, Workload
from ml.layers.rotary import RotaryEmbedding
from ml.layers.vision import PatchEmbedding, Projector
from ml.models.declarations import obstacle_to_seeing_all


@configurable
class VisionEncoder(NoProducts):
    """Vision encoder: y = adapter(norm(encoder(patches(images)))), one vector of the language model's width for each
    patch.

    Blocks in which every patch sees all patches, as in the vision transformer (Dosovitskiy et al. 2020), with the
    adapter of LLaVA (Liu et al. 2023). Mixers get the rows and columns of the patches as positions (P, 2), so their
    rotary embedding is `TwoDimensionalRotary`, or None where the positions are learned.

    Args:
        language_hidden_size: Width of the language model.
        hidden_size: Width of the encoder.
        patches: Constructor of the patch embedding.
        encoder: Constructor of the block sequence.
        normalization: Constructor of the normalization after the last block; None applies none, as in Pixtral.
        adapter: Constructor of the projection to the width of the language model.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    patches: Any  # a `PatchEmbedding`, or a layer with its attributes

    def __init__(
        self,
        language_hidden_size: int,
        *,
        hidden_size: int = REQUIRED,
        patches: Callable[..., nn.Module] = PatchEmbedding,
        encoder: Callable[..., nn.Module] = Repeat,
        normalization: Callable[..., nn.Module] | None = RMSNorm,
        adapter: Callable[..., nn.Module] = Projector,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        self.hidden_size = positive("hidden_size", hidden_size)
        self.patches = child("patches", patches, self.hidden_size)
        self.encoder = child("encoder", encoder, self.hidden_size)
        self.norm = optional_child("norm", normalization, self.hidden_size)
        self.adapter = child("adapter", adapter, self.hidden_size, language_hidden_size)
        for problem in _misfits(self.encoder):
            require(False, "encoder", problem)

    @property
    def num_tokens(self) -> int:
        """Number of token positions of an image."""
        return self.patches.num_patches

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.patches.image_shape

    def forward(self, images: Tensor, auxiliary: Auxiliary | None = None) -> Tensor:
        """Images (I, C, height, width) to vectors (I, P, H) of the language model; `auxiliary` as in a context."""
        positions = self.patches.positions(images.device)
        context = Context(positions, auxiliary=auxiliary, num_tokens=self.num_tokens)
        x = self.encoder(self.patches(images), context)  # (I, P, width of the encoder)
        return self.adapter(x if self.norm is None else self.norm(x))

    def workload(self, sequence_length: int) -> Workload:
        """The patches of one image for each sequence of the model."""
        return Workload(self.num_tokens, self.num_tokens / sequence_length)

    def extra_repr(self) -> str:
        return f"num_tokens={self.num_tokens}"


def _misfits(encoder: nn.Module) -> Iterator[str]:
    """Problems with mixers that are made for text."""
    modules = list(encoder.modules())
    if any(isinstance(module, Mixer) and module.causal for module in modules):
        yield "hides from a patch the patches after it: set `vision/Attention.causal = False`"
    elif obstacle := obstacle_to_seeing_all({"vision.encoder": encoder}):
        yield f"takes mixers that see all patches: {obstacle}"
    if any(isinstance(module, RotaryEmbedding) and module.num_axes != 2 for module in modules):
        yield (
            "turns by the place in a text, and patches have rows and columns: "
            "set `vision/Attention.rotary = @TwoDimensionalRotary`, or None"
        )
