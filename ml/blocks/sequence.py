"""What every sequence of blocks is."""

from torch import Tensor, nn

from ml.layers.context import Context


class BlockSequence(nn.Module):
    """Blocks that a token passes in order: its children, unless a subclass says otherwise in `blocks`."""

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks in order."""
        return list(self.children())

    @property
    def num_layers(self) -> int:
        """How many blocks a token passes, those of inner sequences counted one by one."""
        return sum(getattr(block, "num_layers", 1) for block in self.blocks)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        for block in self.blocks:
            x = block(x, context)
        return x

    def can_hold(self, name: str) -> bool:
        """Whether a block may have this name, which becomes an attribute and a scope."""
        return name.isidentifier() and not hasattr(type(self), name) and name not in vars(self)
