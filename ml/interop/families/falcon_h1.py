"""Falcon-H1: attention and Mamba-2 side by side in each block, with factors of every part."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ml.blocks import DecoderBlock
from ml.config import ImportedValue
from ml.interop.common import attention, attention_bias, gated_mlp, mlp_bias, repeated, rms_norm, sizes
from ml.interop.families.bamba import BLOCKS
from ml.interop.family import Family
from ml.interop.fields import Bias, ConfigFields, Field, Row, Set, View, key_of
from ml.interop.mixers import PARTS_OF_MAMBA_2, Heads, attention_tensors, mamba_2_sizes, mamba_2_tensors
from ml.interop.multipliers import Multipliers, OfKeys, OfMLP
from ml.interop.rotary import Rope
from ml.layers import (
    Attention,
    Embeddings,
    GatedRMSNorm,
    LanguageModelHead,
    Linear,
    Mamba2,
    ParallelMixer,
)

_POSITIONS = {True: "after", False: "before"}  # of the gate, by mamba_norm_before_gate


@dataclass(frozen=True)
class _Norm(Row):
    """The norm of the output of Mamba-2, and its place before or after the gate."""

    names = ("mamba_rms_norm", "mamba_norm_before_gate")

    def imported(self, fields: ConfigFields) -> Iterator[ImportedValue]:
        has_norm, before = fields.get("mamba_rms_norm", False), fields.get("mamba_norm_before_gate", True)
        yield fields.value(key_of(Mamba2, "norm"), GatedRMSNorm if has_norm else None, "mamba_rms_norm")
        if not has_norm:
            fields.idle.add("mamba_norm_before_gate")
        yield fields.value(key_of(GatedRMSNorm, "gate_position"), _POSITIONS[bool(before)], "mamba_norm_before_gate")

    def exported(self, view: View) -> dict[str, Any]:
        mixer = view.first(Mamba2)
        if mixer is None or mixer.norm is None:
            return {"mamba_rms_norm": False}
        return {"mamba_rms_norm": True, "mamba_norm_before_gate": mixer.norm.gate_position == "after"}


FALCON_H1 = Family(
    "Falcon-H1",
    {"falcon_h1": "FalconH1ForCausalLM"},
    (
        *sizes(),
        *repeated(),
        Set(DecoderBlock, "mixer", ParallelMixer),
        Set(ParallelMixer, "mixers", {"attention": Attention, "ssm": Mamba2}),
        Multipliers(
            ("attention_in_multiplier", "ssm_in_multiplier"), ParallelMixer, "input_scales", ("attention", "ssm")
        ),
        Multipliers(
            ("attention_out_multiplier", "ssm_out_multiplier"), ParallelMixer, "output_scales", ("attention", "ssm")
        ),
        Multipliers(("ssm_multipliers",), Mamba2, "projection_scales", PARTS_OF_MAMBA_2),
        *attention(kv_heads=8, dropout=0.0)[1:],
        attention_bias(),
        OfKeys(),
        Rope(),
        Heads(size="mamba_d_ssm"),
        *mamba_2_sizes(""),
        _Norm(),
        Field("rms_norm_eps", GatedRMSNorm, "epsilon", default=1e-5),
        Bias(PARTS_OF_MAMBA_2, Linear, Mamba2, "mamba_proj_bias", False, "ssm"),
        Bias(("output",), Linear, Mamba2, "projectors_bias", False, "ssm"),
        *rms_norm(1e-5),
        *gated_mlp(),
        OfMLP(),
        mlp_bias("mlp_bias"),
        Field("embedding_multiplier", Embeddings, "scale", default=1.0),
        Field("lm_head_multiplier", LanguageModelHead, "logit_scale", default=1.0),
    ),
    (
        *BLOCKS,
        *mamba_2_tensors("model.layers.{i}.mamba", "{block}.mixer.ssm"),
        *attention_tensors("model.layers.{i}.self_attn", ours="{block}.mixer.attention"),
    ),
    frozenset(("num_logits_to_keep",)),
)

FAMILIES = (FALCON_H1,)
