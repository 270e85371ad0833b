"""A sequence of equal blocks."""

from collections.abc import Callable

from torch import Tensor, nn

from ml.blocks.decoder_block import DecoderBlock
from ml.blocks.sharing import share_weights
from ml.config import REQUIRED, child, configurable
from ml.layers.checks import positive
from ml.layers.context import Context
from ml.layers.parameter import checked_lr_scale


@configurable
class Repeat(nn.Module):
    """`num_blocks` times `block`, one after the other, as `block_0`, `block_1`, ..., each with its own weights.

    The attribute names are the scopes, so `block_3/...` and `block_0_to_3/...` set blocks apart. A block may itself be
    a sequence. `shared`: all blocks have the same weights (Dehghani et al. 2018; Lan et al. 2019, ALBERT).
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        block: Callable[..., nn.Module] = DecoderBlock,
        num_blocks: int = REQUIRED,
        shared: bool = False,
        lr_scale: float = 1.0,
    ):
        super().__init__()
        self.lr_scale = checked_lr_scale(lr_scale)
        for index in range(positive("num_blocks", num_blocks)):
            name = f"block_{index}"
            setattr(self, name, child(name, block, hidden_size))
        if shared:
            share_weights(self.blocks, "the blocks")

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks in order."""
        return list(self.children())

    @property
    def num_layers(self) -> int:
        """How many blocks a token passes, those of inner sequences counted one by one."""
        return count_layers(self.blocks)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        for block in self.children():
            x = block(x, context)
        return x


def count_layers(blocks: list[nn.Module]) -> int:
    """How many blocks there are, those of inner sequences counted one by one."""
    return sum(getattr(block, "num_layers", 1) for block in blocks)
