"""Sequences one after another."""

from collections.abc import Callable

from torch import Tensor, nn

from ml.blocks.repeat import count_layers
from ml.config import REQUIRED, child, configurable, require
from ml.layers.context import Context
from ml.layers.parameter import checked_lr_scale


@configurable
class Chain(nn.Module):
    """Blocks or sequences of blocks, each once and in order: `{'dense': @Repeat, 'sparse': @Repeat}`.

    The names are the scopes: `dense/Repeat.num_blocks = 3`, `sparse/block_0_to_3/DecoderBlock.mlp = ...`.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        sequences: dict[str, Callable[..., nn.Module]] = REQUIRED,
        lr_scale: float = 1.0,
    ):
        super().__init__()
        require(len(sequences) > 0, "sequences", "must name one sequence or more")
        self.lr_scale = checked_lr_scale(lr_scale)
        for name, sequence in sequences.items():
            require(
                name.isidentifier() and not hasattr(type(self), name) and not hasattr(self, name),
                "sequences",
                f"cannot have the name {name!r}",
            )
            setattr(self, name, child(name, sequence, hidden_size))

    @property
    def blocks(self) -> list[nn.Module]:
        """The sequences in order."""
        return list(self.children())

    @property
    def num_layers(self) -> int:
        """How many blocks a token passes, those of inner sequences counted one by one."""
        return count_layers(self.blocks)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        for sequence in self.children():
            x = sequence(x, context)
        return x
