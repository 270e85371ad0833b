"""Nemotron-H, Nemotron 3: blocks of one mixer each, which is Mamba-2, attention, an MLP or a mixture of experts.

Time steps have the limits of `time_step_limit`. transformers clamps them at `time_step_min` instead, in a pass over
many tokens and not in decoding.
"""

from collections.abc import Sequence
from typing import Any

from ml.blocks import DecoderBlock
from ml.interop.common import attention, attention_bias, rms_norm, untied
from ml.interop.errors import InteropError
from ml.interop.family import Family
from ml.interop.fields import ConfigFields, Fixed, Row, Set
from ml.interop.kinds import Kinds
from ml.interop.mixers import attention_tensors, mamba_2_tensors
from ml.interop.nemotron_mamba import mamba_2_of_nemotron
from ml.interop.plain_experts import mixture_mixer, mlp_mixer, mlp_tensors
from ml.interop.tensors import row
from ml.layers import MLP, Attention, Mamba2
from ml.layers.moe import MixtureOfExperts

_MIXER = "backbone.layers.{i}.mixer"
_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
_TYPES = {"linear_attention": "mamba", "full_attention": "attention", "mlp": "mlp", "moe": "moe"}
_KINDS = {**_TYPES, "mamba": "mamba", "attention": "attention"}
_CLASSES = {Mamba2: "mamba", Attention: "attention", MLP: "mlp", MixtureOfExperts: "moe"}
_FIELDS = ("layers_block_type", "layer_types", "hybrid_override_pattern", "num_hidden_layers")
_KEPT = frozenset(
    (
        "expand", "mamba_expand", "mamba_ssm_cache_dtype", "moe_shared_expert_overlap", "mtp_hybrid_override_pattern",
        "mtp_layers_block_type", "norm_eps", "num_logits_to_keep", "output_router_logits", "rescale_prenorm_residual",
        "residual_in_fp32", "rms_norm_eps", "time_step_floor", "time_step_max", "time_step_min", "time_step_rank",
        "mamba_dt_init_floor", "mamba_dt_max", "mamba_dt_min", "use_mamba_kernels",
    )
)  # fmt: skip


def _kinds(fields: ConfigFields) -> list[str]:
    """The kinds of `layers_block_type`, else of the letters of `hybrid_override_pattern`."""
    types = fields.get("layers_block_type", None) or fields.get("layer_types", None)
    if types:
        fields.idle.add("hybrid_override_pattern")
    known = _KINDS if types else _LETTERS
    types = types or fields.get("hybrid_override_pattern", None) or fields.get("layers_block_type")
    if not isinstance(types, list | str) or any(not isinstance(name, str) or name not in known for name in types):
        raise InteropError(f"config.json: the blocks must be of the kinds {', '.join(known)}, not {types!r}")
    if fields.get("num_hidden_layers", len(types)) != len(types):
        raise InteropError(f"config.json#num_hidden_layers is not the number of kinds of blocks, {len(types)}")
    return [known[name] for name in types]


def _written(kinds: Sequence[str]) -> dict[str, Any]:
    names, letters = ({kind: name for name, kind in known.items()} for known in (_TYPES, _LETTERS))
    return {
        "layers_block_type": [names[kind] for kind in kinds],
        "hybrid_override_pattern": "".join(letters[kind] for kind in kinds),
        "num_hidden_layers": len(kinds),
    }


def _attention(scope: str) -> tuple[Row, ...]:
    rows = attention(kv_heads=8, head_dim=128, scope=scope)
    return (*rows, Set(Attention, "rotary", None, scope), attention_bias(None))


NEMOTRON_H = Family(
    "Nemotron-H, Nemotron 3",
    {"nemotron_h": "NemotronHForCausalLM"},
    (
        *untied(),
        Kinds(
            _FIELDS,
            _kinds,
            {"mamba": mamba_2_of_nemotron, "attention": _attention, "mlp": mlp_mixer, "moe": mixture_mixer},
            lambda block: next((kind for one, kind in _CLASSES.items() if isinstance(block.mixer, one)), "mlp"),
            _written,
            "layers_block_type",
        ),
        Set(DecoderBlock, "mlp", None),
        *rms_norm(1e-5, "layer_norm_epsilon"),
        *(Fixed(name, False) for name in ("attention_bias", "mamba_proj_bias")),
        *(Fixed(name, None) for name in ("sliding_window", "moe_latent_size")),
        Fixed("hidden_dropout", 0.0),
        Fixed("n_shared_experts", 1),
    ),
    (
        row("backbone.embeddings.weight", "embeddings.token.weight"),
        row("backbone.norm_f.weight", "head.norm.weight"),
        row("lm_head.weight", "head.weight"),
        row("backbone.layers.{i}.norm.weight", "{block}.mixer_norm.weight"),
        *mamba_2_tensors(_MIXER),
        *attention_tensors(_MIXER),
        *mlp_tensors(_MIXER),
    ),
    _KEPT,
    ("*.rotary_emb.inv_freq", "mtp.*"),
    prediction_layers="num_nextn_predict_layers",
    has_code=True,
)

FAMILIES = (NEMOTRON_H,)
