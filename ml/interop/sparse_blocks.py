"""Blocks with experts beside dense ones."""

from collections.abc import Callable, Sequence
from typing import Any

from ml.interop.common import gated_mlp
from ml.interop.errors import InteropError
from ml.interop.fields import ConfigFields, Row
from ml.interop.kinds import Kinds
from ml.layers.moe import MixtureOfExperts

DENSE, SPARSE = "dense", "sparse"
SPARSE_FIELDS = ("num_hidden_layers", "decoder_sparse_step", "mlp_only_layers")


def sparse_blocks(fields: ConfigFields) -> list[str]:
    """Experts in every `decoder_sparse_step`-th block, unless `mlp_only_layers` has it."""
    step = fields.number("decoder_sparse_step", 1)
    dense = fields.get("mlp_only_layers", None) or []
    count = fields.number("num_hidden_layers")
    if not isinstance(dense, list) or any(type(index) is not int or not 0 <= index < count for index in dense):
        raise InteropError(f"config.json#mlp_only_layers must have indices of the {count} blocks, not {dense!r}")
    return [DENSE if i in dense or (i + 1) % step else SPARSE for i in range(count)]


def written_sparse_blocks(kinds: Sequence[str]) -> dict[str, Any]:
    """Returns the fields that `sparse_blocks` reads, for kinds with "dense" or "sparse" in their names."""
    dense = [index for index, kind in enumerate(kinds) if DENSE in kind]
    return {"num_hidden_layers": len(kinds), "decoder_sparse_step": 1, "mlp_only_layers": dense}


def mlp_kind(block: Any) -> str:
    """Returns "sparse" for a block with experts, else "dense"."""
    return SPARSE if isinstance(block.mlp, MixtureOfExperts) else DENSE


def dense_first(sparse: Callable[[str], Sequence[Row]], count: int) -> Kinds:
    """Dense blocks, as many as `first_k_dense_replace`, then blocks with experts.

    Args:
        sparse: The rows of a block with experts, by its scope.
        count: The value of an absent field.
    """

    def read(fields: ConfigFields) -> list[str]:
        first = fields.get("first_k_dense_replace", count)
        if type(first) is not int or first < 0:
            raise InteropError(f"config.json#first_k_dense_replace must be a number of blocks, not {first!r}")
        return [DENSE if index < first else SPARSE for index in range(fields.number("num_hidden_layers"))]

    def written(kinds: Sequence[str]) -> dict[str, Any]:
        first = kinds.index(SPARSE) if SPARSE in kinds else len(kinds)
        return {"num_hidden_layers": len(kinds), "first_k_dense_replace": first}

    return Kinds(
        ("num_hidden_layers", "first_k_dense_replace"),
        read,
        {DENSE: lambda scope: gated_mlp(scope=scope), SPARSE: sparse},
        mlp_kind,
        written,
        "first_k_dense_replace",
    )
