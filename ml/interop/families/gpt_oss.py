"""GPT-OSS: attention sinks, windows in every other block, and experts with biases and a clamped SwiGLU."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ml.config import ImportedValue
from ml.interop.common import (
    ATTENTION,
    EMBEDDINGS_AND_HEAD,
    NORMS,
    attention,
    attention_bias,
    mlp_bias,
    rms_norm,
    sizes,
    width,
)
from ml.interop.experts import RouterLoss, mixture
from ml.interop.family import Family
from ml.interop.fields import ConfigFields, Field, Fixed, Row, Set, View, key_of
from ml.interop.rotary import Rope
from ml.interop.tensors import Stacked, linear_rows, row
from ml.interop.windows import windows
from ml.layers import Attention, GatedMLP, SoftmaxRouter, silu

_EXPERTS = "model.layers.{i}.mlp.experts"
_OURS = "{block}.mlp.experts.expert_{e}"
_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


@dataclass(frozen=True)
class SwishFactor(Row):
    """The factor within the sigmoid of the gate."""

    names = ("swiglu_alpha",)

    def imported(self, fields: ConfigFields) -> Iterator[ImportedValue]:
        yield fields.value(key_of(GatedMLP, "activation"), silu, "model_type")
        yield fields.value(key_of(silu, "beta"), fields.get("swiglu_alpha", 1.702), "swiglu_alpha")

    def exported(self, view: View) -> dict[str, Any]:
        mlp = view.first(GatedMLP)
        return {} if mlp is None else {"swiglu_alpha": getattr(mlp.activation, "keywords", {}).get("beta", 1.0)}


GPT_OSS = Family(
    "GPT-OSS",
    {"gpt_oss": "GptOssForCausalLM"},
    (
        *sizes(),
        windows(2, window=128),
        *attention(kv_heads=8, head_dim=64),
        attention_bias(default=True),
        Set(Attention, "attention_sinks", True),
        *rms_norm(1e-5),
        *mixture("num_local_experts", "num_experts", experts_per_token=4, experts=128),
        Set(SoftmaxRouter, "normalize", True),
        Set(SoftmaxRouter, "bias", True),
        RouterLoss(),
        width(),
        SwishFactor(),
        Field("swiglu_limit", GatedMLP, "limit", default=7.0),
        Set(GatedMLP, "up_offset", 1.0),
        mlp_bias(default=True),
        Rope(150_000.0, scaling=_YARN),
        Fixed("hidden_act", "silu"),
    ),
    (
        *EMBEDDINGS_AND_HEAD,
        *ATTENTION,
        *NORMS,
        row("model.layers.{i}.self_attn.sinks", "{block}.mixer.sinks"),
        *linear_rows({"model.layers.{i}.mlp.router": "{block}.mlp.router"}),
        row(f"{_EXPERTS}.gate_up_proj", f"{_OURS}.gate.weight", f"{_OURS}.up.weight", layout=Stacked(True, 2, True)),
        row(
            f"{_EXPERTS}.gate_up_proj_bias",
            f"{_OURS}.gate.bias",
            f"{_OURS}.up.bias",
            layout=Stacked(count=2, alternating=True),
        ),
        row(f"{_EXPERTS}.down_proj", f"{_OURS}.down.weight", layout=Stacked(transposed=True)),
        row(f"{_EXPERTS}.down_proj_bias", f"{_OURS}.down.bias", layout=Stacked()),
    ),
    frozenset(("experts_per_token", "initial_context_length")),
)

FAMILIES = (GPT_OSS,)
