"""Adapters of a model written in the format of peft."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ml.files import flush_to_disk
from ml.interop.errors import InteropError
from ml.interop.expressing import Expressed, express
from ml.interop.folder import CONFIG
from ml.interop.new_folder import new_folder, write_json
from ml.interop.tensors import Placed, Same, Transposed
from ml.layers import DoRA, LoRA, TokenEmbedding
from ml.layers.adapted import Adapted
from ml.models import LanguageModel
from ml.models.adapters import adapted_layers, adapter_weights

_PREFIX = "base_model.model."


def export_adapter(model: LanguageModel, folder: Path, kept: Mapping[str, bytes] | None, base: str) -> list[str]:
    """Writes the adapters of a model as a folder that peft loads onto the model that it started from.

    Args:
        model: The model with its weights.
        folder: The folder to make.
        kept: Files of the folder that the model was imported from, by name.
        base: The name or folder of the model without adapters, which peft loads.

    Returns:
        Lines that describe what was written.

    Raises:
        InteropError: There are no adapters, peft cannot express them, or other weights were trained too.
    """
    adapters = dict(adapted_layers(model))
    if not adapters:
        raise InteropError("the model has no adapters: Linear.apply_peft = @LoRA adds them")
    alone = adapter_weights(model)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad and name not in alone]
    if trained:
        raise InteropError(
            f"{trained[0]} was trained beside the adapters, which are not the whole difference then: merge them with "
            "--format=hf --merge"
        )
    expressed = express(model, json.loads(kept[CONFIG]) if kept and CONFIG in kept else None)
    places = {one.ours[0].removesuffix(".weight"): one for one in expressed.tensors if one.ours[0].endswith(".weight")}
    kinds = {type(layer.adapter) for layer in adapters.values()}
    if len(kinds) > 1 or not kinds <= {LoRA, DoRA}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise InteropError(f"the adapters are {names}, and those of peft are all LoRA or all DoRA: merge them")
    tensors: dict[str, Tensor] = {}
    ranks, alphas = {}, {}
    for path, layer in adapters.items():
        adapter = layer.adapter
        assert isinstance(adapter, LoRA)
        module = _module(path, places.get(path))
        tensors |= {f"{_PREFIX}{module}.{name}": part for name, part in _tensors(layer, adapter).items()}
        ranks[module] = len(adapter.A)
        alphas[module] = adapter.scale * len(adapter.A)
    with new_folder(folder) as temporary:
        save_file(tensors, temporary / "adapter_model.safetensors", {"format": "pt"})
        flush_to_disk(temporary / "adapter_model.safetensors")
        config = {**_config(expressed, ranks, alphas, base), "use_dora": kinds == {DoRA}}
        write_json(temporary / "adapter_config.json", config)
    return [f"{len(adapters)} adapters for {expressed.family.name}, of the model {base}"]


def _tensors(layer: Adapted, adapter: LoRA) -> dict[str, Tensor]:
    """Returns the tensors of an adapter by their names in peft, after the name of the layer."""
    is_table = isinstance(layer, TokenEmbedding)
    names = ("lora_embedding_A", "lora_embedding_B") if is_table else ("lora_A.weight", "lora_B.weight")
    found = dict(zip(names, (adapter.A, adapter.B), strict=True))
    if isinstance(adapter, DoRA):
        assert layer.weight is not None
        norms = layer.weight.norm(dim=0 if is_table else 1)  # of the rows (out, in), which a table has transposed
        found["lora_magnitude_vector"] = adapter.magnitude * norms
    return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}


def _module(path: str, place: Placed | None) -> str:
    """Returns the name in transformers of the layer at a path."""
    if place is None or not isinstance(place.layout, Same | Transposed):
        raise InteropError(
            f"{path} has an adapter, and the format stores its weight together with others: merge the adapters with "
            "--format=hf --merge"
        )
    return place.stored.removesuffix(".weight")


def _config(expressed: Expressed, ranks: Mapping[str, int], alphas: Mapping[str, float], base: str) -> dict[str, Any]:
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    transposed = any(isinstance(one.layout, Transposed) for one in expressed.tensors)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{module}$": other for module, other in ranks.items() if other != rank},
        "alpha_pattern": {f"^{module}$": other for module, other in alphas.items() if other != alpha},
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "inference_mode": True,
    }
