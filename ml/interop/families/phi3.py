"""Phi-3: query, key and value in one tensor, gate and up in another."""

from ml.blocks import DecoderBlock
from ml.interop.common import (
    EMBEDDINGS_AND_HEAD,
    NORMS,
    QUERY_KEY_VALUE,
    attention,
    attention_bias,
    gated_mlp,
    mlp_bias,
    repeated,
    rms_norm,
    sizes,
)
from ml.interop.family import Family
from ml.interop.fields import Field
from ml.interop.rotary import Rope
from ml.interop.tensors import Concatenated, row
from ml.layers import Attention, Embeddings

_LAYER = "model.layers.{i}"

PHI_3 = Family(
    "Phi-3",
    {"phi3": "Phi3ForCausalLM"},
    (
        *sizes(),
        *repeated(),
        *attention(),
        attention_bias(None),
        Field("sliding_window", Attention, "window_size", default=None),
        Field("resid_pdrop", DecoderBlock, "dropout", default=0.0),
        Field("embd_pdrop", Embeddings, "dropout", default=0.0),
        *rms_norm(1e-5),
        *gated_mlp(),
        mlp_bias(),
        Rope(fraction=1.0),
    ),
    (
        *EMBEDDINGS_AND_HEAD,
        *NORMS,
        row(
            f"{_LAYER}.self_attn.qkv_proj.weight",
            *(f"{{block}}.mixer.{name}.weight" for name in QUERY_KEY_VALUE),
            layout=Concatenated(),
        ),
        row(f"{_LAYER}.self_attn.o_proj.weight", "{block}.mixer.output.weight"),
        row(
            f"{_LAYER}.mlp.gate_up_proj.weight",
            "{block}.mlp.gate.weight",
            "{block}.mlp.up.weight",
            layout=Concatenated(),
        ),
        row(f"{_LAYER}.mlp.down_proj.weight", "{block}.mlp.down.weight"),
    ),
    has_code=True,
)

FAMILIES = (PHI_3,)
