"""Models written as Hugging Face folders: whole or not there."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ml.data.chat.encoding import ChatFormat
from ml.data.tokenizers import Tokenizer
from ml.files import flush_to_disk
from ml.interop.errors import InteropError
from ml.interop.expressing import Expressed, express
from ml.interop.folder import CONFIG, INDEX, SINGLE
from ml.interop.new_folder import new_folder, write_json
from ml.interop.tokenizer_files import write_chat_template, write_generation_config, write_tokenizer
from ml.models import LanguageModel
from ml.models.adapters import adapter_weights, merge_adapters
from ml.training.state import named_weights

SHARD_SIZE = 5_000_000_000  # bytes


def export_folder(
    model: LanguageModel,
    folder: Path,
    *,
    kept: Mapping[str, bytes] | None = None,
    tokenizer: Tokenizer | None = None,
    chat: ChatFormat | None = None,
    sequence_length: int | None = None,
    dtype: torch.dtype | None = None,
    shard_size: int = SHARD_SIZE,
    merge: bool = False,
) -> list[str]:
    """Writes a model as a folder that transformers loads.

    Args:
        model: The model with its weights; changed by `merge`.
        folder: The folder to make.
        kept: Files of the folder that the model was imported from, by name.
        tokenizer: The tokenizer, written where `kept` has another one or none.
        chat: The chat template with the tokenizer; None keeps that in `kept`.
        sequence_length: Number of positions of a model that was not imported.
        dtype: The dtype of the weights; None for that of the model.
        shard_size: Most bytes of a file.
        merge: Whether to merge adapters into the weights.

    Returns:
        Lines that describe what was written.

    Raises:
        InteropError: The format cannot express the model, or the folder cannot be written.
    """
    kept = dict(kept or {})
    if adapter_weights(model):
        if not merge:
            raise InteropError(
                "the model has adapters (Linear.apply_peft): merge them into its weights with --merge, or write them "
                "alone with --format=peft"
            )
        merge_adapters(model)
    expressed = express(model, json.loads(kept[CONFIG]) if CONFIG in kept else None)
    with new_folder(folder) as temporary:
        written = _write_weights(expressed, model, temporary, dtype, shard_size)
        config = _completed(expressed.config, model, tokenizer, sequence_length, dtype, CONFIG in kept)
        write_json(temporary / CONFIG, config)
        lines = [f"{expressed.family.name}: {written}"]
        for name, content in kept.items():
            if name != CONFIG:
                (temporary / name).write_bytes(content)
        lines += write_tokenizer(temporary, tokenizer)
        lines += write_chat_template(temporary, chat)
        write_generation_config(temporary, kept, chat)
    return lines


def _completed(
    config: Mapping[str, Any],
    model: LanguageModel,
    tokenizer: Tokenizer | None,
    sequence_length: int | None,
    dtype: torch.dtype | None,
    is_imported: bool,
) -> dict[str, Any]:
    """Returns a config.json with the fields that no row has: dtype, positions, and the end of a document."""
    completed = dict(config)
    kind = next(model.parameters()).dtype if dtype is None else dtype
    spelled = "torch_dtype" if "torch_dtype" in completed else "dtype"
    completed[spelled] = str(kind).removeprefix("torch.")
    if not is_imported:  # else an absent field has its default in transformers, as in the imported folder
        if sequence_length is not None:
            completed.setdefault("max_position_embeddings", sequence_length)
        end = None if tokenizer is None else tokenizer.end_of_document
        completed |= {"eos_token_id": end, "bos_token_id": None, "pad_token_id": None}
    return completed


def _write_weights(
    expressed: Expressed, model: LanguageModel, folder: Path, dtype: torch.dtype | None, shard_size: int
) -> str:
    """Writes the weights in files of at most a size, one after the other; returns a description."""
    shards = _divided(expressed, model, dtype, shard_size)
    weights = named_weights(model)
    places: dict[str, str] = {}
    for index, names in enumerate(shards):
        file = SINGLE if len(shards) == 1 else f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
        chosen = [one for one in expressed.tensors if one.stored in names]
        tensors = {
            one.stored: _as(one.layout.join([weights[name] for name in one.ours], expressed.config), dtype)
            for one in chosen
        }
        save_file(tensors, folder / file, {"format": "pt"})
        flush_to_disk(folder / file)
        places |= dict.fromkeys(tensors, file)
    total = sum((folder / file).stat().st_size for file in set(places.values()))
    if len(shards) > 1:
        num_bytes = sum(sum(sizes.values()) for sizes in shards)
        write_json(folder / INDEX, {"metadata": {"total_size": num_bytes}, "weight_map": places})
    return f"{len(places)} tensors in {len(shards)} {'file' if len(shards) == 1 else 'files'}, {total:,} bytes"


def _divided(
    expressed: Expressed, model: LanguageModel, dtype: torch.dtype | None, shard_size: int
) -> list[dict[str, int]]:
    """Divides the tensors into files; returns the bytes of each tensor, by file."""
    weights = named_weights(model)
    shards: list[dict[str, int]] = [{}]
    for one in expressed.tensors:
        parts = [weights[name] for name in one.ours]
        shape = one.layout.shape([tuple(part.shape) for part in parts], expressed.config)
        size = math.prod(shape) * (dtype or parts[0].dtype).itemsize
        if shards[-1] and sum(shards[-1].values()) + size > shard_size:
            shards.append({})
        shards[-1][one.stored] = size
    return shards


def _as(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
