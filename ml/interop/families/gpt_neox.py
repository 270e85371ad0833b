"""GPT-NeoX and Pythia: attention and MLP in parallel, query, key and value head by head in one tensor."""

from ml.blocks import DecoderBlock
from ml.interop.common import QUERY_KEY_VALUE, layer_norm, plain_mlp, repeated, sizes
from ml.interop.family import Family
from ml.interop.fields import Bias, ConfigFields, Field, Set
from ml.interop.rotary import Rope
from ml.interop.tensors import ByHead, linear_rows, row
from ml.layers import Attention, Linear

_LAYER = "gpt_neox.layers.{i}"


def _head_size(fields: ConfigFields) -> int:
    return fields.number("hidden_size") // fields.number("num_attention_heads")


GPT_NEOX = Family(
    "GPT-NeoX, Pythia",
    {"gpt_neox": "GPTNeoXForCausalLM"},
    (
        *sizes(),
        *repeated(),
        Set(DecoderBlock, "mixer", Attention),
        Field("num_attention_heads", Attention, "num_heads"),
        Bias((*QUERY_KEY_VALUE, "output"), Linear, Attention, "attention_bias", True),
        Field("attention_dropout", Attention, "dropout", default=0.0),
        Field("hidden_dropout", DecoderBlock, "dropout", default=0.0),
        Field("use_parallel_residual", DecoderBlock, "parallel", default=True),
        *layer_norm(),
        *plain_mlp(),
        Rope(fraction=0.25, theta_field="rotary_emb_base", fraction_field="rotary_pct"),
    ),
    (
        row("gpt_neox.embed_in.weight", "embeddings.token.weight"),
        row("embed_out.weight", "head.weight"),
        *(
            row(
                f"{_LAYER}.attention.query_key_value.{kind}",
                *(f"{{block}}.mixer.{name}.{kind}" for name in QUERY_KEY_VALUE),
                layout=ByHead("num_attention_heads"),
            )
            for kind in ("weight", "bias")
        ),
        *linear_rows(
            {
                f"{_LAYER}.attention.dense": "{block}.mixer.output",
                f"{_LAYER}.mlp.dense_h_to_4h": "{block}.mlp.up",
                f"{_LAYER}.mlp.dense_4h_to_h": "{block}.mlp.down",
                f"{_LAYER}.input_layernorm": "{block}.mixer_norm",
                f"{_LAYER}.post_attention_layernorm": "{block}.mlp_norm",
                "gpt_neox.final_layer_norm": "head.norm",
            }
        ),
    ),
    frozenset(("classifier_dropout",)),
    ignored=("*.attention.bias", "*.attention.masked_bias", "*.rotary_emb.inv_freq"),
)

FAMILIES = (GPT_NEOX,)
