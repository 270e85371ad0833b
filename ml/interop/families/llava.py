"""LLaVA with a vision tower of Pixtral: a language model that reads the patches of images in the place of tokens."""

from collections.abc import Mapping
from typing import Any

from ml.interop.common import ACTIVATIONS
from ml.interop.families.llama import LLAMA
from ml.interop.families.mistral import MISTRAL
from ml.interop.families.qwen import QWEN_2
from ml.interop.family import Family
from ml.interop.fields import Bias, Field, Fixed, Part, Set
from ml.interop.nested import Language, Text, Tower
from ml.interop.pixtral import pixtral, pixtral_tensors
from ml.interop.tensors import TensorRow, rows_within
from ml.layers import Linear
from ml.layers.vision import Projector
from ml.models import VisionEncoder, VisionLanguageModel
from ml.training import Trainer

# The families of the language model, each with what transformers takes for fields that others require.
_SIZES = {"vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
_TEXT = Text(
    {
        "llama": Language(LLAMA, {**_SIZES, "intermediate_size": 11008}),
        "mistral": Language(MISTRAL, {**_SIZES, "intermediate_size": 14336}),
        "qwen2": Language(QWEN_2, {**_SIZES, "intermediate_size": 22016, "vocab_size": 151936}),
    }
)
_KEPT = frozenset(("add_cross_attention", "head_dim", "is_encoder_decoder", "tie_word_embeddings"))


class Llava(Family):
    """LLaVA, whose tensors are those of its language model and of its vision tower."""

    def tensors_of(self, config: Mapping[str, Any]) -> tuple[TensorRow, ...]:
        tower = pixtral_tensors("vision_tower", config.get("vision_config") or {})
        return (*_TEXT.tensors(config, "language_model."), *self.tensors, *tower)


LLAVA = Llava(
    "LLaVA with Pixtral",
    {"llava": "LlavaForConditionalGeneration"},
    (
        Set(Trainer, "model", VisionLanguageModel),
        _TEXT,
        Tower("pixtral", pixtral, _KEPT),
        Field("image_token_index", VisionLanguageModel, "image_token_id", default=32000, aliases=("image_token_id",)),
        Set(VisionLanguageModel, "vision", VisionEncoder),
        Set(VisionEncoder, "adapter", Projector),
        Set(Projector, "intermediate_size", None),
        Part("projector_hidden_act", Projector, "activation", ACTIVATIONS, "gelu", "adapter"),
        Bias(("first", "second"), Linear, Projector, "multimodal_projector_bias", True, "adapter"),
        Fixed("vision_feature_layer", -1, is_written=True, absent=-2),
        Fixed("vision_feature_select_strategy", "full", is_written=True, absent="default"),
        Fixed("tie_word_embeddings", False),
    ),
    rows_within("multi_modal_projector", "vision.adapter", {"linear_1.": "first.", "linear_2.": "second."}),
    frozenset(("image_seq_length",)),
)

FAMILIES = (LLAVA,)
