"""The files of a checkpoint: writing a training state and restoring it bit for bit."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ml.distributed import weights_changed
from ml.run_files import read_json
from ml.training.checkpoints.counts import require_counts
from ml.training.checkpoints.mismatches import listed, require_equal
from ml.training.checkpoints.tensor_files import (
    TensorShape,
    WritePlan,
    read_tensors,
    tensor_shapes,
    write_index,
    write_tensors,
)
from ml.training.errors import RunError
from ml.training.evaluation.lowest import Lowest
from ml.training.state import BEST_VALIDATION, OPTIMIZER, TrainState

TRAINING = "training.json"
OPERATIVE_CONFIG = "operative_config.gin"
UNTOUCHED = "untouched"  # in the values of a checkpoint
_LOWEST = "lowest"


class Snapshot(NamedTuple):
    """A training state at one step. Its tensors share memory with the state until they are copied."""

    step: int
    tensors: dict[str, Tensor]
    counts: dict[str, Any]
    operative_config: str | None

    @property
    def best_step(self) -> int | None:
        """The step whose checkpoint is kept for its validation; None for none."""
        return best_step(self.counts)


class WrittenPart(NamedTuple):
    """Part of a checkpoint that one process wrote.

    Attributes:
        tensors: The places of its tensors.
        untouched: Names of its trained parameters that no step has changed yet, e.g. of an expert that received no
            token.
    """

    tensors: list[Any]
    untouched: list[str]


def snapshot(
    state: TrainState, data_sha256: str, operative_config: str | None, order_sha256: str | None = None
) -> Snapshot:
    """Returns the contents of a checkpoint of `state`.

    Args:
        state: The state after a step.
        data_sha256: Hash of the data of the run.
        operative_config: Text of the operative config; None omits it.
        order_sha256: Hash of the first sequences of the data, `RunData.order_sha256`.
    """
    counts = {
        "step": state.step,
        "tokens": state.tokens,
        "sequences": state.sequences,
        "seconds": state.seconds,
        "data_sha256": data_sha256,
        "order_sha256": order_sha256,
        "unvalidated": state.unvalidated,
        _LOWEST: {name: lowest.as_json() for name, lowest in state.lowest.items()},
        UNTOUCHED: [name for name, each in state.trained().items() if not state.optimizer.state.get(each)],
    }
    return Snapshot(state.step, state.tensors(), counts, operative_config)


def write_part(folder: Path, taken: Snapshot, plan: WritePlan) -> WrittenPart:
    """Writes the tensors of this process, named as in `TrainState.tensors`.

    Args:
        folder: The folder, which must exist.
        taken: The state; of a shared tensor the part of this process.
        plan: The division of the tensors among the processes.
    """
    return WrittenPart(write_tensors(folder, taken.tensors, plan), taken.counts.get(UNTOUCHED, []))


def write_rest(folder: Path, taken: Snapshot, plan: WritePlan, parts: Sequence[WrittenPart]) -> list[str]:
    """Writes the files that a checkpoint has once, in rank 0; returns their names.

    Args:
        folder: The folder, which must exist.
        taken: The state.
        plan: The division of the tensors among the processes.
        parts: What `write_part` returned in each process.
    """
    names = [write_index(folder, plan, [part.tensors for part in parts]), TRAINING]
    untouched = list(dict.fromkeys(name for part in parts for name in part.untouched))
    (folder / TRAINING).write_text(json.dumps(taken.counts | {UNTOUCHED: untouched}, indent=1) + "\n", "utf-8")
    if taken.operative_config is not None:
        (folder / OPERATIVE_CONFIG).write_text(taken.operative_config, "utf-8")
        names.append(OPERATIVE_CONFIG)
    return names


def read_counts(folder: Path) -> dict[str, Any]:
    """Reads the values of a checkpoint that are not tensors.

    Raises:
        UserError: The file has other values.
        OSError: It cannot be read.
    """
    return require_counts(read_json(folder / TRAINING), folder / TRAINING)


def read_whole_counts(folder: Path) -> dict[str, Any]:
    """Reads the values of a checkpoint that are not tensors, with the `sequences` that an old one does not count.

    Raises:
        UserError: The file has other values.
        OSError: It cannot be read.
    """
    counts = read_counts(folder)
    return counts if "sequences" in counts else counts | {"sequences": _sequences_of_old(folder, counts["step"])}


def restore_lowest(counts: Mapping[str, Any], lowest: Mapping[str, Lowest]) -> None:
    """Continues the comparison of validations from the values of a checkpoint."""
    for name, each in lowest.items():
        each.restore(counts.get(_LOWEST, {}).get(name))


def best_step(counts: Mapping[str, Any]) -> int | None:
    """Returns the step of the best validation, by the values of the newest checkpoint; None if none is known."""
    return counts.get(_LOWEST, {}).get(BEST_VALIDATION, {}).get("step") or None


def read_state(folder: Path, state: TrainState, data_sha256: str) -> None:
    """Restores a checkpoint into `state`, in place, on any mesh; a collective call.

    Args:
        folder: The checkpoint.
        state: The state to overwrite.
        data_sha256: Hash of the data of the run.

    Raises:
        RunError: The checkpoint was trained on other data or belongs to another model.
    """
    world = state.layout.world
    counts = world.first(lambda: read_whole_counts(folder))
    world.together(lambda: _require_same_data(folder, counts, data_sha256))
    saved = world.together(lambda: tensor_shapes(folder))
    begun = _begin_optimizer(state, saved)
    expected = state.tensors()
    require_equal(folder, saved, expected, world)
    lost = state.trained().keys() - begun - set(counts[UNTOUCHED])
    if lost := set().union(*world.gather(lost)):
        raise world.common(RunError(f"{folder} is of another model:\n{listed('has no optimizer state of', lost)}"))
    world.together(lambda: read_tensors(folder, expected))
    weights_changed(state.model)
    state.step, state.tokens, state.seconds = counts["step"], counts["tokens"], counts["seconds"]
    state.sequences = counts["sequences"]
    state.unvalidated = counts["unvalidated"]
    restore_lowest(counts, state.lowest)


def _sequences_of_old(folder: Path, step: int) -> int:
    """Returns the sequences consumed before a checkpoint that does not count them; all of its steps had one batch size.

    Raises:
        RunError: It has no batch size.
    """
    config = folder / OPERATIVE_CONFIG
    text = config.read_text("utf-8") if config.is_file() else ""
    batch_size = re.search(r"^Trainer\.batch_size = (\d+)", text, re.MULTILINE)
    if batch_size is None:
        raise RunError(f"{folder} does not say how much data it consumed: it has neither `sequences` nor a batch size")
    return step * int(batch_size[1])


def _require_same_data(folder: Path, counts: Mapping[str, Any], data_sha256: str) -> None:
    if counts["data_sha256"] != data_sha256:
        raise RunError(
            f"the data has changed since {folder} was written (SHA-256 {data_sha256[:12]}, then "
            f"{counts['data_sha256'][:12]}): restore it, or start another run"
        )


def _begin_optimizer(state: TrainState, saved: Mapping[str, TensorShape]) -> set[str]:
    """Allocates the saved optimizer state without its values; returns the names of the parameters that have some.

    State of the shape of its parameter is divided among the processes as the parameter is.
    """
    trained = state.trained()
    devices = _devices_of_steps(state)
    begun = set()
    for source, saved_as in saved.items():
        name, _, key = source.removeprefix(OPTIMIZER).rpartition("/")
        if source.startswith(OPTIMIZER) and name in trained:
            parameter = trained[name].detach()
            of_parameter = state.optimizer.state[trained[name]]
            device = devices[name] if key == "step" else parameter.device
            if key not in of_parameter or TensorShape.of(of_parameter[key]) != saved_as:
                of_parameter[key] = _allocated(saved_as, parameter, device)
            begun.add(name)
    return begun


def _allocated(saved: TensorShape, parameter: Tensor, device: torch.device) -> Tensor:
    if saved.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=saved.dtype, device=device)
    return torch.empty(saved.shape, dtype=saved.dtype, device=device)


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
