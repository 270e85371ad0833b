"""A family of models: the rows of its fields and of its tensors, from which both directions follow."""

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml.interop.errors import InteropError
from ml.interop.fields import ConfigFields, Row
from ml.interop.tensors import TensorRow

# Fields without a place in a model: an export writes those of the imported folder again.
KEPT = frozenset(
    (
        "_attn_implementation", "_attn_implementation_autoset", "_name_or_path", "architectures", "bad_words_ids",
        "begin_suppress_tokens", "bos_token_id", "chunk_size_feed_forward", "cross_attention_hidden_size",
        "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype", "early_stopping",
        "encoder_no_repeat_ngram_size", "eos_token_id", "exponential_decay_length_penalty", "finetuning_task",
        "forced_bos_token_id", "forced_eos_token_id", "id2label", "initializer_range", "is_composition", "is_decoder",
        "label2id",
        "length_penalty", "max_length", "max_position_embeddings", "min_length", "model_type", "no_repeat_ngram_size",
        "num_beam_groups", "num_beams", "num_return_sequences", "output_attentions", "output_hidden_states",
        "output_scores", "pad_token_id", "prefix", "pretraining_tp", "problem_type", "pruned_heads",
        "remove_invalid_values", "repetition_penalty", "return_dict", "return_dict_in_generate", "sep_token_id",
        "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss", "tokenizer_class", "top_k",
        "top_p", "torch_dtype", "torchscript", "transformers_version", "typical_p", "unk_token_id", "unsloth_version",
        "use_bfloat16", "use_cache",
    )
)  # fmt: skip
# Fields of folders that no family can express; of some families released checkpoints name code.
_REFUSED = {
    "quantization_config": "has quantized weights, which are not imported: dequantize them to bfloat16 first",
    "compression_config": "has compressed weights, which are not imported: decompress them to bfloat16 first",
    "auto_map": "names code in its folder, which is never executed: only families that are built in are imported",
    "is_encoder_decoder": "is an encoder with a decoder, not a causal language model",
    "add_cross_attention": "is a decoder of an encoder, not a causal language model",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Family:
    """A family of models.

    Args:
        name: Its name, for people.
        architectures: The class of transformers by `model_type`; the first is written by an export.
        rows: The fields of config.json that make the model.
        tensors: The tensors.
        kept: Fields without a place in the model, besides those of all families.
        ignored: Patterns of tensors that a checkpoint may have and that hold no weights.
        prefix: Prefix that checkpoints may lack at the start of the names of their tensors.
        prediction_layers: The field with the number of layers after the last block, which predict further tokens for
            speculative decoding: they are known, not read, and not written.
        has_code: Whether released checkpoints name code in their folder, from before transformers had the family. It
            is not executed, and an export does not name it.
    """

    name: str
    architectures: Mapping[str, str]
    rows: tuple[Row, ...]
    tensors: tuple[TensorRow, ...]
    kept: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ("*.rotary_emb.inv_freq",)
    prefix: str = ""
    prediction_layers: str = ""
    has_code: bool = False

    def tensors_of(self, config: Mapping[str, Any]) -> tuple[TensorRow, ...]:
        """Returns the tensors of the models of a config.json."""
        return self.tensors

    def is_unread(self, name: str, config: Mapping[str, Any]) -> bool:
        """Returns whether a checkpoint may have a tensor that is not read.

        Args:
            name: The name of the tensor.
            config: The content of config.json.

        Raises:
            InteropError: The number of prediction layers is none.
        """
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.ignored):
            return True
        count = config.get(self.prediction_layers) or 0
        if type(count) is not int or count < 0:
            raise InteropError(f"config.json#{self.prediction_layers} must be a number of layers, not {count!r}")
        match = _LAYER.match(name) if count else None
        return match is not None and 0 <= int(match[1]) - config["num_hidden_layers"] < count

    def written(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the config.json of an export, which has no prediction layers and no code."""
        written = {name: value for name, value in config.items() if name != "auto_map"}
        return {**written, **({self.prediction_layers: 0} if self.prediction_layers else {})}

    @property
    def all_kept(self) -> frozenset[str]:
        """The fields without a place in the model."""
        return KEPT | self.kept | {self.prediction_layers} | _REFUSED.keys()

    @property
    def fields(self) -> frozenset[str]:
        """The fields with a place in the model."""
        return frozenset(name for one in self.rows for name in one.names) - self.kept


def require_plain(config: Mapping[str, Any], family: Family) -> None:
    """Refuses what a family cannot express.

    Raises:
        InteropError: The weights are quantized, or the folder needs its own code.
    """
    for name, message in _REFUSED.items():
        if config.get(name) and not (name == "auto_map" and family.has_code):
            raise InteropError(f"config.json#{name}: the checkpoint {message}")


def require_known(family: Family, fields: ConfigFields) -> None:
    """Refuses fields that are neither part of the model nor known to be harmless.

    Raises:
        InteropError: There are others; the message lists them.
    """
    unknown = sorted(
        name
        for name, value in fields.content.items()
        if name not in fields.read and name not in family.all_kept and value is not None
    )
    if unknown:
        listed = ", ".join(f"{name} = {fields.content[name]!r}" for name in unknown)
        raise InteropError(
            f"config.json has fields that {family.name} is not known to have, so the model may be another one: {listed}"
        )
