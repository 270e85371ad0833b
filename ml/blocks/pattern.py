"""Sequence of several kinds of blocks in a repeating pattern."""

from collections.abc import Callable, Sequence
from typing import Annotated

from torch import nn

from ml.blocks.sequence import BlockSequence
from ml.blocks.sharing import share_weights
from ml.config import REQUIRED, UNORDERED, child, children, configurable, require
from ml.layers.checks import MAX_COUNT, positive
from ml.layers.copying import ModuleCopier


@configurable
class Pattern(BlockSequence):
    """Sequence of blocks whose kinds repeat a pattern: `['ssm', 'ssm', 'attention']`.

    The scope of a block is the name of its kind and its index in the whole sequence: `ssm/DecoderBlock.mixer = @Mamba2`
    configures a kind and `block_3/...` one block, whatever its kind.

    Args:
        hidden_size: Width of the residual stream, H.
        blocks: Constructors of the kinds of blocks by name.
        pattern: Names of the kinds, in order; repeated until `num_blocks` is reached.
        num_blocks: Number of blocks; None is one pass over the pattern.
        shared: Kinds whose blocks all share one set of weights (Zamba 2024).
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        blocks: Annotated[dict[str, Callable[..., nn.Module]], UNORDERED] = REQUIRED,
        pattern: Sequence[str] = REQUIRED,
        num_blocks: int | None = None,
        shared: Sequence[str] = (),
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        self.kinds = _kinds(blocks, pattern, num_blocks)
        unknown = [kind for kind in shared if kind not in blocks]
        require(not unknown, "shared", f"must name blocks ({', '.join(blocks)}), not {', '.join(unknown)}")
        for kind in dict.fromkeys(self.kinds):
            require(self.can_hold(kind), "blocks", f"cannot have the name {kind!r}")
            indices = [index for index, other in enumerate(self.kinds) if other == kind]
            setattr(self, kind, child(kind, _group, blocks[kind], hidden_size, indices))
            if kind in shared:
                share_weights(list(getattr(self, kind).children()), kind)

    def named_blocks(self) -> dict[str, nn.Module]:
        """The blocks in order; a name is that of the kind and the number in the whole sequence."""
        names = [f"{kind}.block_{index}" for index, kind in enumerate(self.kinds)]
        return {name: self.get_submodule(name) for name in names}

    def extra_repr(self) -> str:
        return " ".join(self.kinds)


def _kinds(blocks: dict[str, Callable], pattern: Sequence[str], num_blocks: int | None) -> list[str]:
    """The kind of each block, of those that exist."""
    unknown = [kind for kind in pattern if kind not in blocks]
    require(not unknown, "pattern", f"must name blocks ({', '.join(blocks)}), not {', '.join(map(str, unknown))}")
    require(len(pattern) > 0, "pattern", "must name one block or more")
    known = [kind for kind in pattern if kind in blocks] or list(blocks)[:1]
    count = len(pattern) if num_blocks is None else positive("num_blocks", num_blocks, at_most=MAX_COUNT)
    kinds = [known[index % len(known)] for index in range(max(count, 1))]
    unused = [kind for kind in blocks if kind not in kinds]
    require(not unused, "blocks", f"has {', '.join(unused)}, which the pattern does not reach in {count} blocks")
    return kinds


def _group(block: Callable[..., nn.Module], hidden_size: int, indices: list[int]) -> nn.ModuleDict:
    names = [f"block_{index}" for index in indices]
    return nn.ModuleDict(children(names, block, hidden_size, copier=ModuleCopier()))
