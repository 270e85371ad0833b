"""Sequences one after another."""

from collections.abc import Callable

from torch import nn

from ml.blocks.sequence import BlockSequence
from ml.config import REQUIRED, child, configurable, require


@configurable
class Chain(BlockSequence):
    """Sequence of blocks or block sequences, each once and in order: `{'dense': @Repeat, 'sparse': @Repeat}`.

    The names are the scopes: `dense/Repeat.num_blocks = 3`, `sparse/block_0_to_3/DecoderBlock.mlp = ...`.

    Args:
        hidden_size: Width of the residual stream, H.
        sequences: Constructors of the sequences by name, in order.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        sequences: dict[str, Callable[..., nn.Module]] = REQUIRED,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        require(len(sequences) > 0, "sequences", "must name one sequence or more")
        for name, sequence in sequences.items():
            require(self.can_hold(name), "sequences", f"cannot have the name {name!r}")
            setattr(self, name, child(name, sequence, hidden_size))
