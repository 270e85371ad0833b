"""Mamba, Falcon-Mamba and Mamba-2: state-space mixers without an MLP."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ml.blocks import DecoderBlock
from ml.config import ImportedValue
from ml.interop.common import ACTIVATIONS, repeated, rms_norm, sizes
from ml.interop.errors import InteropError
from ml.interop.family import Family
from ml.interop.fields import Bias, ConfigFields, Field, Part, Row, Set, View, key_of
from ml.interop.tensors import Concatenated, TensorRow, linear_rows, row
from ml.layers import CausalConvolution, FixedRMSNorm, GatedRMSNorm, Linear, Mamba, Mamba2

_MIXER = "backbone.layers.{i}.mixer"
_KEPT = frozenset(
    (
        "time_step_scale", "time_step_min", "time_step_max", "time_step_floor", "time_step_init_scheme",
        "rescale_prenorm_residual", "residual_in_fp32", "use_mambapy", "use_falcon_mambapy", "use_associative_scan",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Expansion(Row):
    """The width of the mixer as a multiple of the width of the model; `intermediate_size` is computed from it."""

    names = ("expand", "intermediate_size")

    def imported(self, fields: ConfigFields) -> Iterator[ImportedValue]:
        fields.get("intermediate_size", None)
        fields.idle.add("intermediate_size")
        expand = fields.get("expand", 2)
        if isinstance(expand, bool) or not isinstance(expand, int | float):
            raise InteropError(f"config.json#expand must be a number, not {expand!r}")
        size = int(expand * fields.number("hidden_size"))
        heads = fields.content.get("num_heads", 0), fields.content.get("head_dim", 0)
        if fields.content.get("model_type") == "mamba2":
            if math.prod(heads) != size:
                raise InteropError(f"config.json#expand makes {size} channels, and num_heads · head_dim {heads}")
            return
        yield fields.value(key_of(Mamba, "intermediate_size"), size, "expand")

    def exported(self, view: View) -> dict[str, Any]:
        mixer = view.first(Mamba) or view.first(Mamba2)
        if mixer is None:
            return {}
        size = mixer.output.in_features
        exact = size / view.model.hidden_size
        return {"expand": int(exact) if exact == int(exact) else exact}


def _rank(value: Any) -> Any:
    return None if value == "auto" else value


def _limits(value: Any) -> tuple[float, float]:
    low, high = (float(one["__float__"] if isinstance(one, dict) else one) for one in value)
    return low, high


def _shared(mixer: type, tied: bool) -> tuple[Row, ...]:
    return (
        *sizes(tied),
        *repeated(),
        Set(DecoderBlock, "mixer", mixer),
        Set(DecoderBlock, "mlp", None),
        *rms_norm(1e-5, "layer_norm_epsilon"),
        Field("state_size", mixer, "state_size", default=16 if mixer is Mamba else 128),
        Expansion(),
        Field("conv_kernel", CausalConvolution, "kernel_size", default=4),
        Field(
            "use_conv_bias",
            CausalConvolution,
            "bias",
            default=True,
            read=lambda view: view.first(CausalConvolution).bias is not None,
        ),
        Part("hidden_act", CausalConvolution, "activation", ACTIVATIONS, "silu"),
    )


_MAMBA = (
    *_shared(Mamba, tied=True),
    Field("time_step_rank", Mamba, "dt_rank", default=None, to=_rank),
    Bias(("x", "gate", "output"), Linear, Mamba, "use_bias", False),
    Part("hidden_act", Mamba, "activation", ACTIVATIONS, "silu"),
)
_TENSORS: tuple[TensorRow, ...] = (
    row("backbone.embeddings.weight", "embeddings.token.weight"),
    row("backbone.norm_f.weight", "head.norm.weight"),
    row("lm_head.weight", "head.weight"),
    row("backbone.layers.{i}.norm.weight", "{block}.mixer_norm.weight"),
    *linear_rows({f"{_MIXER}.conv1d": "{block}.mixer.convolution", f"{_MIXER}.out_proj": "{block}.mixer.output"}),
    row(f"{_MIXER}.A_log", "{block}.mixer.A_log"),
    row(f"{_MIXER}.D", "{block}.mixer.D"),
)
_MAMBA_TENSORS = (
    *_TENSORS,
    *(
        row(
            f"{_MIXER}.in_proj.{kind}",
            f"{{block}}.mixer.x.{kind}",
            f"{{block}}.mixer.gate.{kind}",
            layout=Concatenated(),
        )
        for kind in ("weight", "bias")
    ),
    row(
        f"{_MIXER}.x_proj.weight",
        *(f"{{block}}.mixer.{name}.weight" for name in ("dt_down", "B", "C")),
        layout=Concatenated(),
    ),
    row(f"{_MIXER}.dt_proj.weight", "{block}.mixer.dt.weight"),
    row(f"{_MIXER}.dt_proj.bias", "{block}.mixer.dt_bias"),
)
_PARTS = ("gate", "x", "B", "C", "dt")

MAMBA = Family("Mamba", {"mamba": "MambaForCausalLM"}, _MAMBA, _MAMBA_TENSORS, _KEPT)
FALCON_MAMBA = Family(
    "Falcon-Mamba",
    {"falcon_mamba": "FalconMambaForCausalLM"},
    (
        *_MAMBA,
        *(Set(Mamba, name, FixedRMSNorm) for name in ("dt_norm", "B_norm", "C_norm")),
        Field("mixer_rms_eps", FixedRMSNorm, "epsilon", default=1e-6),
    ),
    _MAMBA_TENSORS,
    _KEPT,
)
MAMBA_2 = Family(
    "Mamba-2",
    {"mamba2": "Mamba2ForCausalLM"},
    (
        *_shared(Mamba2, tied=False),
        Field("num_heads", Mamba2, "num_heads", default=128),
        Field("head_dim", Mamba2, "head_size", default=64),
        Field("n_groups", Mamba2, "num_groups", default=8),
        Field("chunk_size", Mamba2, "chunk_size", default=256),
        Field("time_step_limit", Mamba2, "dt_limit", default=(0.0, math.inf), to=_limits, back=list),
        Field("layer_norm_epsilon", GatedRMSNorm, "epsilon", default=1e-5),
        Bias((*_PARTS, "output"), Linear, Mamba2, "use_bias", False),
    ),
    (
        *_TENSORS,
        *(
            row(
                f"{_MIXER}.in_proj.{kind}",
                *(f"{{block}}.mixer.{name}.{kind}" for name in _PARTS),
                layout=Concatenated(),
            )
            for kind in ("weight", "bias")
        ),
        row(f"{_MIXER}.norm.weight", "{block}.mixer.norm.weight"),
        row(f"{_MIXER}.dt_bias", "{block}.mixer.dt_bias"),
    ),
    _KEPT | {"time_step_rank", "rms_norm"},
)

FAMILIES = (MAMBA, FALCON_MAMBA, MAMBA_2)
