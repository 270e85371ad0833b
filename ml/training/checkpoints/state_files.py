"""The files of a checkpoint: writing a training state and restoring it bit for bit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ml.training.checkpoints.mismatches import listed, require_equal
from ml.training.checkpoints.tensor_files import TensorShape, read_tensors, tensor_shapes, write_tensors
from ml.training.errors import RunError
from ml.training.state import OPTIMIZER, TrainState

TRAINING = "training.json"
OPERATIVE_CONFIG = "operative_config.gin"


class Snapshot(NamedTuple):
    """A training state at one step. Its tensors share memory with the state until they are copied."""

    step: int
    tensors: dict[str, Tensor]
    counts: dict[str, Any]
    operative_config: str | None


def snapshot(state: TrainState, data_sha256: str, operative_config: str | None) -> Snapshot:
    """Returns the contents of a checkpoint of `state`.

    Args:
        state: The state after a step.
        data_sha256: Hash of the data of the run.
        operative_config: Text of the operative config; None omits it.
    """
    untouched = [name for name, parameter in state.trained().items() if not state.optimizer.state.get(parameter)]
    counts = {
        "step": state.step,
        "tokens": state.tokens,
        "seconds": state.seconds,
        "data_sha256": data_sha256,
        "unvalidated": state.unvalidated,
        "untouched": untouched,  # parameters that no step has changed yet, e.g. of an expert that received no token
    }
    return Snapshot(state.step, state.tensors(), counts, operative_config)


def write_snapshot(folder: Path, taken: Snapshot) -> None:
    """Writes the files of a checkpoint; tensors are named as in `TrainState.tensors`."""
    write_tensors(folder, taken.tensors)
    (folder / TRAINING).write_text(json.dumps(taken.counts, indent=1) + "\n", "utf-8")
    if taken.operative_config is not None:
        (folder / OPERATIVE_CONFIG).write_text(taken.operative_config, "utf-8")


def read_counts(folder: Path) -> dict[str, Any]:
    """Reads the values of a checkpoint that are not tensors."""
    return json.loads((folder / TRAINING).read_text("utf-8"))


def read_state(folder: Path, state: TrainState, data_sha256: str) -> None:
    """Restores a checkpoint into `state`, in place.

    Args:
        folder: The checkpoint.
        state: The state to overwrite.
        data_sha256: Hash of the data of the run.

    Raises:
        RunError: The checkpoint was trained on other data or belongs to another model.
    """
    counts = read_counts(folder)
    if counts["data_sha256"] != data_sha256:
        raise RunError(
            f"the data has changed since {folder} was written (SHA-256 {data_sha256[:12]}, then "
            f"{counts['data_sha256'][:12]}): restore it, or start another run"
        )
    saved = tensor_shapes(folder)
    begun = _begin_optimizer(state, saved)
    expected = state.tensors()
    require_equal(folder, saved, expected)
    if lost := state.trained().keys() - begun - set(counts["untouched"]):
        raise RunError(f"{folder} is of another model:\n{listed('has no optimizer state of', lost)}")
    read_tensors(folder, expected)
    state.step, state.tokens, state.seconds = counts["step"], counts["tokens"], counts["seconds"]
    state.unvalidated = counts["unvalidated"]


def _begin_optimizer(state: TrainState, saved: Mapping[str, TensorShape]) -> set[str]:
    """Allocates the saved optimizer state without its values; returns the names of the parameters that have some."""
    trained = state.trained()
    devices = _devices_of_steps(state)
    begun = set()
    for source, (dtype, shape) in saved.items():
        name, _, key = source.removeprefix(OPTIMIZER).rpartition("/")
        if source.startswith(OPTIMIZER) and name in trained:
            device = devices[name] if key == "step" else trained[name].device
            state.optimizer.state[trained[name]][key] = torch.empty(shape, dtype=dtype, device=device)
            begun.add(name)
    return begun


def _devices_of_steps(state: TrainState) -> dict[str, torch.device]:
    """Returns the device of each parameter's step counter: the host, unless the kernel is fused or capturable."""
    on_device = {
        id(parameter)
        for group in state.optimizer.param_groups
        for parameter in group["params"]
        if group.get("fused") or group.get("capturable")
    }
    return {
        name: parameter.device if id(parameter) in on_device else torch.device("cpu")
        for name, parameter in state.trained().items()
    }
