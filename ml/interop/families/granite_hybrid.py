"""Granite 4: Mamba-2 and attention, with experts beside a shared one or with one MLP, and the factors of Granite."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from ml.interop.common import (
    EMBEDDINGS_AND_HEAD,
    NORMS,
    attention,
    attention_bias,
    gated_mlp,
    mlp_bias,
    rms_norm,
    sizes,
    width,
)
from ml.interop.experts import RouterLoss, mixture
from ml.interop.families.granite import MULTIPLIERS
from ml.interop.family import Family
from ml.interop.fields import ConfigFields, Row, Set, within
from ml.interop.hybrids import LINEAR, combined, kind_of, mixers, written_mixers
from ml.interop.kinds import Kinds
from ml.interop.mixers import Positions, attention_tensors, mamba_2, mamba_2_tensors
from ml.interop.rotary import Rope
from ml.interop.tensors import Concatenated, Stacked, row
from ml.layers import GatedMLP
from ml.layers.moe import MixtureOfExperts

_SHARED, _EXPERTS = "model.layers.{i}.shared_mlp", "model.layers.{i}.block_sparse_moe"
_MLPS = ("{block}.mlp", "{block}.mlp.shared_expert")
_COUNT, _WIDTH = "num_local_experts", "shared_intermediate_size"


def _kinds(fields: ConfigFields) -> list[str]:
    mlp = "sparse" if fields.get(_COUNT, 8) else "dense"
    return [f"{mixer}_{mlp}" for mixer in mixers(fields, lambda index: LINEAR)]


def _written(kinds: Sequence[str]) -> dict[str, Any]:
    return {**written_mixers(kinds), **({} if kinds[0].endswith("_sparse") else {_COUNT: 0})}


def _attention(scope: str) -> tuple[Row, ...]:
    return (*attention(scope=scope), attention_bias(), Positions(Rope(scope=scope)))


def _dense(scope: str) -> tuple[Row, ...]:
    rows = gated_mlp(scope=scope)
    return (rows[0], width(_WIDTH, scope), *rows[2:])


def _sparse(scope: str) -> tuple[Row, ...]:
    return (
        *mixture(_COUNT, experts_per_token=2, experts=8, scope=scope),
        Set(MixtureOfExperts, "shared_expert", GatedMLP, scope),
        width(scope=within(scope, "experts")),
        width(_WIDTH, within(scope, "shared_expert")),
        RouterLoss(),
    )


GRANITE_HYBRID = Family(
    "Granite 4",
    {"granitemoehybrid": "GraniteMoeHybridForCausalLM"},
    (
        *sizes(),
        Kinds(
            ("num_hidden_layers", "layer_types", _COUNT),
            _kinds,
            combined(
                {"mamba": partial(mamba_2, epsilon=1e-6), "attention": _attention}, {"dense": _dense, "sparse": _sparse}
            ),
            kind_of,
            _written,
        ),
        *rms_norm(),
        mlp_bias(),
        *MULTIPLIERS,
    ),
    (
        *EMBEDDINGS_AND_HEAD,
        *NORMS,
        *mamba_2_tensors("model.layers.{i}.mamba"),
        *attention_tensors("model.layers.{i}.self_attn"),
        row(f"{_EXPERTS}.router.layer.weight", "{block}.mlp.router.weight"),
        row(f"{_EXPERTS}.output_linear.weight", "{block}.mlp.experts.expert_{e}.down.weight", layout=Stacked()),
        row(
            f"{_EXPERTS}.input_linear.weight",
            *(f"{{block}}.mlp.experts.expert_{{e}}.{part}.weight" for part in ("gate", "up")),
            layout=Stacked(count=2),
        ),
        *(row(f"{_SHARED}.output_linear.weight", f"{ours}.down.weight") for ours in _MLPS),
        *(
            row(f"{_SHARED}.input_linear.weight", f"{ours}.gate.weight", f"{ours}.up.weight", layout=Concatenated())
            for ours in _MLPS
        ),
    ),
)

FAMILIES = (GRANITE_HYBRID,)
