"""Sequence of equal blocks."""

from collections.abc import Callable

from torch import nn

from ml.blocks.decoder_block import DecoderBlock
from ml.blocks.sequence import BlockSequence
from ml.blocks.sharing import share_weights
from ml.config import REQUIRED, children, configurable
from ml.layers.checks import MAX_COUNT, positive
from ml.layers.copying import ModuleCopier


@configurable
class Repeat(BlockSequence):
    """Sequence of `num_blocks` equal blocks: `block_0`, `block_1`, ..., each with its own weights.

    The attribute names are the scopes, so `block_3/...` and `block_0_to_3/...` configure single blocks. A block may
    itself be a sequence.

    Args:
        hidden_size: Width of the residual stream, H.
        block: Constructor of a block.
        num_blocks: Number of blocks.
        shared: Shares one set of weights among all blocks (Dehghani et al. 2018; Lan et al. 2019, ALBERT).
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
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
        super().__init__(lr_scale)
        names = [f"block_{index}" for index in range(positive("num_blocks", num_blocks, at_most=MAX_COUNT))]
        for name, built in children(names, block, hidden_size, copier=ModuleCopier()).items():
            setattr(self, name, built)
        if shared:
            share_weights(self.blocks, "the blocks")
