"""Phi-1, 1.5 and 2: attention and MLP in parallel over one norm, biases everywhere."""

from ml.blocks import DecoderBlock
from ml.interop.common import ATTENTION, QUERY_KEY_VALUE, attention, layer_norm, plain_mlp, repeated, sizes
from ml.interop.family import Family
from ml.interop.fields import Bias, Field, Fixed, Set
from ml.interop.rotary import Rope
from ml.interop.tensors import linear_rows, row
from ml.layers import Attention, Embeddings, LanguageModelHead, Linear

_LAYER = "model.layers.{i}"

PHI = Family(
    "Phi-1, 1.5, 2",
    {"phi": "PhiForCausalLM"},
    (
        *sizes(),
        *repeated(),
        *attention(),
        Bias((*QUERY_KEY_VALUE, "output"), Linear, Attention, default=True),
        Set(DecoderBlock, "parallel", True),
        Set(DecoderBlock, "shared_norm", True),
        Field("resid_pdrop", DecoderBlock, "dropout", default=0.0),
        Field("embd_pdrop", Embeddings, "dropout", default=0.0),
        *layer_norm(),
        *plain_mlp(default="gelu_new"),
        Set(LanguageModelHead, "bias", True),
        Rope(fraction=0.5),
        Fixed("qk_layernorm", False),
    ),
    (
        row("model.embed_tokens.weight", "embeddings.token.weight"),
        *(one for one in ATTENTION if ".o_proj." not in one.stored),
        *linear_rows(
            {
                f"{_LAYER}.self_attn.dense": "{block}.mixer.output",
                f"{_LAYER}.mlp.fc1": "{block}.mlp.up",
                f"{_LAYER}.mlp.fc2": "{block}.mlp.down",
                f"{_LAYER}.input_layernorm": "{block}.mixer_norm",
                "model.final_layernorm": "head.norm",
                "lm_head": "head",
            }
        ),
    ),
)

FAMILIES = (PHI,)
