"""Base class of sequences of blocks."""

from collections.abc import Mapping

from torch import Tensor, nn

from ml.layers.context import Context
from ml.layers.protocol import Layer, NoProducts, Stack


class BlockSequence(NoProducts, Stack):
    """Blocks that a token passes in order: the children, unless a subclass overrides `named_blocks`."""

    def named_blocks(self) -> dict[str, nn.Module]:
        """The blocks in order, by their names in the module."""
        return dict(self.named_children())

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks in order."""
        return list(self.named_blocks().values())

    @property
    def num_layers(self) -> int:
        """The number of blocks that a token passes; a block that is no `Stack` counts once."""
        return sum(block.num_layers if isinstance(block, Stack) else 1 for block in self.blocks)

    @property
    def num_branches(self) -> int:
        """The branches of all blocks; a block that declares none counts two."""
        return sum(block.num_branches if isinstance(block, Layer) else 2 for block in self.blocks)

    def mixing_children(self) -> Mapping[str, nn.Module]:
        """All blocks."""
        return self.named_blocks()

    def forward(self, x: Tensor, context: Context) -> Tensor:
        for block in self.blocks:
            x = block(x, context)
        return x

    def can_hold(self, name: str) -> bool:
        """True where a block may have this name, which becomes an attribute and a scope."""
        return name.isidentifier() and not hasattr(type(self), name) and name not in vars(self)
