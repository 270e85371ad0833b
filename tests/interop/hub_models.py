"""Random models of the transformers library, on disk and imported."""

import json
import re
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from ml.interop.expressing import model_of
from ml.interop.folder import Folder
from ml.interop.from_hugging_face import read_folder
from ml.interop.importing import imported_values
from ml.models import LanguageModel, materialize

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

SIZES = {
    "vocab_size": 61,
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # large enough that attention is far from uniform
    "tie_word_embeddings": False,
    "pad_token_id": None,  # else transformers gives token 0 an embedding of zero and no gradient
    "bos_token_id": 1,
    "eos_token_id": 2,
}

VISION = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full", "tie_word_embeddings": False}
TOWER = {
    "model_type": "pixtral", "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2,
    "num_attention_heads": 4, "patch_size": 4, "image_size": 16, "initializer_range": 0.2,
}  # fmt: skip
MODEL_CLASSES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
# transformers writes the tensors of Kimi's dense MLPs below the name of those with experts.
RELEASED_NAMES = {"kimi_linear": (r"block_sparse_moe\.(\w+_proj)", r"mlp.\1")}


def oracle_of(name: str, changes: dict, seed: int = 3) -> nn.Module:
    """Returns a model of transformers with random weights, all of them far from their initial ones and zeros."""
    torch.manual_seed(seed)
    config_class = getattr(transformers, f"{name}TextConfig", None) or getattr(transformers, f"{name}Config")
    model_class = next(filter(None, (getattr(transformers, f"{name}{end}", None) for end in MODEL_CLASSES)))
    settings = {**(VISION if "vision_config" in changes else SIZES), "attn_implementation": "eager", **changes}
    for inner, sizes in (("text_config", {"model_type": "llama", **SIZES}), ("vision_config", TOWER)):
        if inner in changes:
            settings[inner] = {**sizes, **changes[inner]}
    oracle = model_class(config_class(**{name: value for name, value in settings.items() if value is not ...}))
    with torch.no_grad():
        for key, tensor in (*oracle.named_parameters(), *oracle.named_buffers()):
            if tensor.is_floating_point() and "inv_freq" not in key and (tensor.dim() == 1 or "bias" in key):
                tensor.add_(torch.randn_like(tensor), alpha=0.2)
    return oracle.eval()


def model_type(name: str, changes: dict) -> str:
    """Returns the `model_type` of a model of transformers."""
    config_class = getattr(transformers, f"{name}TextConfig", None) or getattr(transformers, f"{name}Config")
    return config_class.model_type


def saved(oracle: nn.Module, folder: Path) -> Path:
    """Writes a model as transformers does, with the names of released checkpoints where those are others."""
    oracle.save_pretrained(folder)
    file, names = folder / "model.safetensors", RELEASED_NAMES.get(oracle.config.model_type)
    if names:
        tensors = load_file(file)
        save_file({re.sub(*names, name): tensor for name, tensor in tensors.items()}, file, {"format": "pt"})
    return folder


def imported(folder: Path) -> LanguageModel:
    """Imports the model of a folder with its weights, in evaluation mode."""
    opened = Folder(folder)
    model = materialize(model_of(imported_values(opened)))
    load_into(model, opened)
    return model.eval()


def load_into(model: LanguageModel, folder: Folder) -> None:
    """Loads the weights of a folder into a model."""
    read_folder(folder, model)


def with_fields(folder: Path, changes: dict) -> Path:
    """Changes fields of the config.json of a folder; `...` removes a field."""
    file = folder / "config.json"
    content = {**json.loads(file.read_text("utf-8")), **changes}
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}), "utf-8")
    return folder


def auto_class(oracle: nn.Module) -> type:
    """Returns the class of transformers that loads models of the kind of one."""
    reads_images = type(oracle).__name__.endswith(MODEL_CLASSES[-1])
    return transformers.AutoModelForImageTextToText if reads_images else transformers.AutoModelForCausalLM


def vocabulary(oracle: nn.Module) -> int:
    """Returns the number of tokens of text; the last one may stand for images."""
    return oracle.config.get_text_config().vocab_size - hasattr(oracle.config, "image_token_id")


def batch(vocab_size: int, shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns tokens and targets, some of them without a loss."""
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(0, vocab_size, shape, generator=generator)
    targets = torch.randint(0, vocab_size, shape, generator=generator)
    targets[torch.rand(shape, generator=generator) < 0.2] = -100
    return tokens, targets
