"""GPT-2: learned positions, and linear layers that are stored transposed."""

from ml.blocks import DecoderBlock
from ml.interop.common import ACTIVATIONS, layer_norm, repeated
from ml.interop.family import Family
from ml.interop.fields import Bias, ConfigFields, Field, Fixed, Part, Set
from ml.interop.tensors import Concatenated, TensorRow, Transposed, linear_rows, row
from ml.layers import MLP, Attention, Embeddings, Linear, PositionEmbedding
from ml.models import LanguageModel

_BLOCK = "transformer.h.{i}"
_PROJECTIONS = ("query", "key", "value")


def _width(fields: ConfigFields) -> int:
    return 4 * fields.number("n_embd")


def _layer(stored: str, ours: str) -> tuple[TensorRow, ...]:
    """Weight, transposed, and bias of a linear layer."""
    return (
        row(f"{_BLOCK}.{stored}.weight", f"{{block}}.{ours}.weight", layout=Transposed()),
        row(f"{_BLOCK}.{stored}.bias", f"{{block}}.{ours}.bias"),
    )


GPT_2 = Family(
    "GPT-2",
    {"gpt2": "GPT2LMHeadModel"},
    (
        Field("vocab_size", LanguageModel, "vocab_size"),
        Field("n_embd", LanguageModel, "hidden_size"),
        Field("tie_word_embeddings", LanguageModel, "tie_word_embeddings", default=True),
        *repeated("n_layer"),
        Set(Embeddings, "position", PositionEmbedding),
        Field("n_positions", PositionEmbedding, "num_positions", default=1024),
        Field("embd_pdrop", Embeddings, "dropout", default=0.1),
        Set(DecoderBlock, "mixer", Attention),
        Set(Attention, "rotary", None),
        Field("n_head", Attention, "num_heads"),
        Field("attn_pdrop", Attention, "dropout", default=0.1),
        Bias((*_PROJECTIONS, "output"), Linear, Attention, default=True),
        Field("resid_pdrop", DecoderBlock, "dropout", default=0.1),
        Set(DecoderBlock, "mlp", MLP),
        Field(
            "n_inner",
            MLP,
            "intermediate_size",
            default=None,
            null=_width,
            read=lambda view: view.first(MLP).up.out_features,
        ),
        Part("activation_function", MLP, "activation", ACTIVATIONS, "gelu_new"),
        Bias(("up", "down"), Linear, MLP, default=True),
        *layer_norm("layer_norm_epsilon"),
        Fixed("scale_attn_weights", True),
        Fixed("scale_attn_by_inverse_layer_idx", False),
    ),
    (
        row("transformer.wte.weight", "embeddings.token.weight"),
        row("transformer.wpe.weight", "embeddings.position.weight"),
        *linear_rows(
            {
                f"{_BLOCK}.ln_1": "{block}.mixer_norm",
                f"{_BLOCK}.ln_2": "{block}.mlp_norm",
                "transformer.ln_f": "head.norm",
            }
        ),
        row(
            f"{_BLOCK}.attn.c_attn.weight",
            *(f"{{block}}.mixer.{name}.weight" for name in _PROJECTIONS),
            layout=Concatenated(transposed=True),
        ),
        row(
            f"{_BLOCK}.attn.c_attn.bias",
            *(f"{{block}}.mixer.{name}.bias" for name in _PROJECTIONS),
            layout=Concatenated(),
        ),
        *_layer("attn.c_proj", "mixer.output"),
        *_layer("mlp.c_fc", "mlp.up"),
        *_layer("mlp.c_proj", "mlp.down"),
        row("lm_head.weight", "head.weight"),
    ),
    frozenset(
        (
            "n_ctx",
            "reorder_and_upcast_attn",
            "summary_activation",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
            "gradient_checkpointing",
        )
    ),
    ignored=("*.attn.bias", "*.attn.masked_bias"),
    prefix="transformer.",
)

FAMILIES = (GPT_2,)
