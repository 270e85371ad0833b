"""The files of a checkpoint: what is in them, and how a state is read back from them bit by bit."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ml.training.errors import RunError
from ml.training.state import TrainState, named_weights

WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
TRAINING = "training.json"
OPERATIVE_CONFIG = "operative_config.gin"


def write_state(folder: Path, state: TrainState, data_sha256: str, operative_config: str | None) -> None:
    """Writes `state` to files in `folder`; tensors of the optimizer are named "parameter/tensor"."""
    save_file(_on_host(named_weights(state.model)), folder / WEIGHTS)
    save_file(_on_host(_optimizer_tensors(state)), folder / OPTIMIZER)
    counts = {"step": state.step, "tokens": state.tokens, "seconds": state.seconds, "untouched": _untouched(state)}
    (folder / TRAINING).write_text(json.dumps({**counts, "data_sha256": data_sha256}, indent=1) + "\n", "utf-8")
    if operative_config is not None:
        (folder / OPERATIVE_CONFIG).write_text(operative_config, "utf-8")


def read_state(folder: Path, state: TrainState, data_sha256: str) -> None:
    """Puts what `write_state` wrote into `state`, in place.

    Raises:
        RunError: It was trained on other data, or it is not a state of this model.
    """
    training = json.loads((folder / TRAINING).read_text("utf-8"))
    if training["data_sha256"] != data_sha256:
        raise RunError(
            f"the data has changed since {folder} was written (SHA-256 {data_sha256[:12]}, it was "
            f"{training['data_sha256'][:12]}): restore it, or start another run"
        )
    read_weights(folder, state.model)
    _read_optimizer(folder / OPTIMIZER, state, training["untouched"])
    state.step, state.tokens, state.seconds = training["step"], training["tokens"], training["seconds"]


def _on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _optimizer_tensors(state: TrainState) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": tensor
        for name, parameter in state.trained().items()
        for key, tensor in state.optimizer.state.get(parameter, {}).items()
    }


@torch.no_grad()
def read_weights(folder: Path, model: nn.Module, may_lack: Collection[str] = ()) -> None:
    """Puts the weights of a checkpoint into `model`, in place. What it lacks of `may_lack` stays as it is.

    Raises:
        RunError: They are of another model.
    """
    file = folder / WEIGHTS
    saved, weights = load_file(file), named_weights(model)
    weights = {name: weight for name, weight in weights.items() if name in saved or name not in may_lack}
    _require_same_names(file, set(saved), set(weights))
    for name, weight in weights.items():
        if (saved[name].shape, saved[name].dtype) != (weight.shape, weight.dtype):
            raise RunError(
                f"{name} in {file} is {saved[name].dtype} {tuple(saved[name].shape)}; "
                f"the model has {weight.dtype} {tuple(weight.shape)}"
            )
        weight.copy_(saved[name])


def _untouched(state: TrainState) -> list[str]:
    """The parameters that no step has changed yet, such as those of an expert without a token."""
    return [name for name, parameter in state.trained().items() if not state.optimizer.state.get(parameter)]


def _read_optimizer(file: Path, state: TrainState, untouched: list[str]) -> None:
    saved, trained = load_file(file), state.trained()
    _require_same_names(file, {*(name.rpartition("/")[0] for name in saved), *untouched}, set(trained))
    for key, tensor in saved.items():
        name, _, part = key.rpartition("/")
        state.optimizer.state[trained[name]][part] = tensor.to(trained[name].device)


def _require_same_names(file: Path, saved: set[str], expected: set[str]) -> None:
    if saved != expected:
        missing, unknown = sorted(expected - saved)[:3], sorted(saved - expected)[:3]
        raise RunError(f"{file} is of another model: missing {missing}, not expected {unknown}")
