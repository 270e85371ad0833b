"""The vision encoder: from images to vectors that stand in for tokens."""

from collections.abc import Callable, Iterator

from torch import Tensor, nn

from ml.blocks.repeat import Repeat
from ml.config import REQUIRED, child, configurable, require
from ml.layers.checks import positive
from ml.layers.context import Auxiliary, Context
from ml.layers.normalization import RMSNorm
from ml.layers.parameter import checked_lr_scale
from ml.layers.rotary import TwoDimensionalRotary
from ml.layers.vision import PatchEmbedding, Projector
from ml.models.flops import flops_per_token


@configurable
class VisionEncoder(nn.Module):
    """y = adapter(norm(encoder(patches(images)))): each patch becomes a vector as wide as the language model.

    Blocks that see all patches, as in the vision transformer (Dosovitskiy et al. 2020); the adapter is the one of LLaVA
    (Liu et al. 2023). The rows and columns of the patches are the positions (P, 2) that mixers see, so a rotary has to
    be a `TwoDimensionalRotary`, or None where the positions are learned.

    normalization: after the last block; None for none, as in Pixtral.
    """

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
        super().__init__()
        self.hidden_size = positive("hidden_size", hidden_size)
        self.lr_scale = checked_lr_scale(lr_scale)
        self.patches = child("patches", patches, self.hidden_size)
        self.encoder = child("encoder", encoder, self.hidden_size)
        self.norm = None if normalization is None else child("norm", normalization, self.hidden_size)
        self.adapter = child("adapter", adapter, self.hidden_size, language_hidden_size)
        for problem in _misfits(self.encoder):
            require(False, "encoder", problem)

    @property
    def num_tokens(self) -> int:
        """How many tokens an image takes the place of."""
        return self.patches.num_patches

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.patches.image_shape

    def forward(self, images: Tensor, auxiliary: Auxiliary | None = None) -> Tensor:
        """Images (I, C, height, width) to vectors (I, P, H) of the language model; `auxiliary` as in a context."""
        context = Context(positions=self.patches.positions(images.device), auxiliary=auxiliary)
        x = self.encoder(self.patches(images), context)  # (I, P, width of the encoder)
        return self.adapter(x if self.norm is None else self.norm(x))

    def whole_training_flops_per_token(self, sequence_length: int) -> float:
        """Of everything in here, shared out to the tokens of a sequence that holds one image."""
        per_patch = sum(flops_per_token(part, self.num_tokens) for part in self.children())
        return per_patch * self.num_tokens / sequence_length

    def extra_repr(self) -> str:
        return f"num_tokens={self.num_tokens}"


def _misfits(encoder: nn.Module) -> Iterator[str]:
    """What is wrong with mixers that were made for text."""
    if any(getattr(module, "causal", False) for module in encoder.modules()):
        yield "hides from a patch the patches after it: set `vision/Attention.causal = False`"
    rotaries = [getattr(module, "rotary", None) for module in encoder.modules()]
    if any(rotary is not None and not isinstance(rotary, TwoDimensionalRotary) for rotary in rotaries):
        yield (
            "turns by the place in a text, and patches have rows and columns: "
            "set `vision/Attention.rotary = @TwoDimensionalRotary`, or None"
        )
