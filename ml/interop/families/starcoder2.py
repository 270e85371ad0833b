"""StarCoder 2: LayerNorm, biases, and an MLP without a gate."""

from ml.blocks import DecoderBlock
from ml.interop.common import (
    ATTENTION,
    EMBEDDINGS_AND_HEAD,
    QUERY_KEY_VALUE,
    attention,
    layer_norm,
    plain_mlp,
    repeated,
    sizes,
)
from ml.interop.family import Family
from ml.interop.fields import Bias, Field
from ml.interop.rotary import Rope
from ml.interop.tensors import linear_rows, row
from ml.layers import Attention, Embeddings, Linear

_LAYER = "model.layers.{i}"

STARCODER_2 = Family(
    "StarCoder 2",
    {"starcoder2": "Starcoder2ForCausalLM"},
    (
        *sizes(tied=True),
        *repeated(),
        *attention(kv_heads=2),
        Bias((*QUERY_KEY_VALUE, "output"), Linear, Attention, "use_bias", True),
        Field("sliding_window", Attention, "window_size", default=None),
        Field("residual_dropout", DecoderBlock, "dropout", default=0.0),
        Field("embedding_dropout", Embeddings, "dropout", default=0.0),
        *layer_norm("norm_epsilon"),
        *plain_mlp(default="gelu_pytorch_tanh", bias="use_bias"),
        Rope(),
    ),
    (
        *EMBEDDINGS_AND_HEAD,
        *ATTENTION,
        row("model.norm.bias", "head.norm.bias"),
        *linear_rows(
            {
                f"{_LAYER}.input_layernorm": "{block}.mixer_norm",
                f"{_LAYER}.post_attention_layernorm": "{block}.mlp_norm",
                f"{_LAYER}.mlp.c_fc": "{block}.mlp.up",
                f"{_LAYER}.mlp.c_proj": "{block}.mlp.down",
            }
        ),
    ),
)

FAMILIES = (STARCODER_2,)
