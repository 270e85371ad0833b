"""The files of a checkpoint: what is in them, and how a state is read back from them bit by bit."""

import fnmatch
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ml.training.errors import RunError
from ml.training.state import AVERAGE, MODEL, OPTIMIZER, TrainState, named_weights
from ml.training.tensor_files import TensorShape, read_tensors, tensor_shapes, write_tensors

TRAINING = "training.json"
OPERATIVE_CONFIG = "operative_config.gin"

_MOST_NAMES = 20  # in a message


class Snapshot(NamedTuple):
    """A state at one moment. Its tensors are those of the state, until they are copied."""

    step: int
    tensors: dict[str, Tensor]
    counts: dict[str, Any]
    operative_config: str | None


def snapshot(state: TrainState, data_sha256: str, operative_config: str | None) -> Snapshot:
    """What a checkpoint of `state` holds."""
    untouched = [name for name, parameter in state.trained().items() if not state.optimizer.state.get(parameter)]
    counts = {
        "step": state.step,
        "tokens": state.tokens,
        "seconds": state.seconds,
        "data_sha256": data_sha256,
        "unvalidated": state.unvalidated,
        "untouched": untouched,  # parameters that no step has changed yet, such as those of an expert without a token
    }
    return Snapshot(state.step, state.tensors(), counts, operative_config)


def write_snapshot(folder: Path, taken: Snapshot) -> None:
    """Writes the files of a checkpoint; tensors are named as in `TrainState.tensors`."""
    write_tensors(folder, taken.tensors)
    (folder / TRAINING).write_text(json.dumps(taken.counts, indent=1) + "\n", "utf-8")
    if taken.operative_config is not None:
        (folder / OPERATIVE_CONFIG).write_text(taken.operative_config, "utf-8")


def read_counts(folder: Path) -> dict[str, Any]:
    """What a checkpoint says beside its tensors."""
    return json.loads((folder / TRAINING).read_text("utf-8"))


def read_state(folder: Path, state: TrainState, data_sha256: str) -> None:
    """Puts a checkpoint into `state`, in place.

    Raises:
        RunError: It was trained on other data, or it is not a state of this model.
    """
    counts = read_counts(folder)
    if counts["data_sha256"] != data_sha256:
        raise RunError(
            f"the data has changed since {folder} was written (SHA-256 {data_sha256[:12]}, it was "
            f"{counts['data_sha256'][:12]}): restore it, or start another run"
        )
    saved = tensor_shapes(folder)
    begun = _begin_optimizer(state, saved)
    expected = state.tensors()
    _require_equal(folder, saved, expected)
    if lost := state.trained().keys() - begun - set(counts["untouched"]):
        raise RunError(f"{folder} is of another model:\n{_listed('has no optimizer state of', lost)}")
    read_tensors(folder, expected)
    state.step, state.tokens, state.seconds = counts["step"], counts["tokens"], counts["seconds"]
    state.unvalidated = counts["unvalidated"]


def read_weights(
    folder: Path,
    model: nn.Module,
    may_lack: Collection[str] = (),
    may_differ: Iterable[str] = (),
    *,
    average: bool = False,
) -> list[str]:
    """Puts the weights of a checkpoint into `model`, in place.

    Args:
        folder: Of the checkpoint.
        model: Its weights keep their names, shapes and types.
        may_lack: Names of weights that the checkpoint need not have.
        may_differ: Patterns of names, such as "head.*": what the checkpoint has not, or in another shape, and what it
            has and the model has not, is passed over.
        average: Takes the running average of the weights, where there is one, instead of the last ones.

    Returns:
        The weights of the model that stayed as they were.

    Raises:
        RunError: They are of another model; all that differs is listed.
    """
    saved = tensor_shapes(folder)
    sources = {name.removeprefix(MODEL): name for name in saved if name.startswith(MODEL)}
    if average:
        averaged = {name.removeprefix(AVERAGE): name for name in saved if name.startswith(AVERAGE)}
        if not averaged:
            raise RunError(f"{folder} has no average of the weights: that run had no Trainer.weight_average")
        sources |= averaged
    weights = named_weights(model)
    _require_that_each_matches(may_differ, weights.keys() | sources.keys())
    strict = {
        name: weight
        for name, weight in weights.items()
        if not _matches(name, may_differ) and (name in sources or name not in may_lack)
    }
    _require_equal(
        folder, {name: saved[source] for name, source in sources.items() if not _matches(name, may_differ)}, strict
    )
    read = {
        name: weight
        for name, weight in weights.items()
        if name in strict or (name in sources and TensorShape.of(weight) == saved[sources[name]])
    }
    read_tensors(folder, {sources[name]: weight for name, weight in read.items()})
    return sorted(weights.keys() - read.keys())


def export_weights(folder: Path, file: Path, *, average: bool = False) -> int:
    """Writes the weights of a checkpoint alone, as safetensors with their names in the model; returns how many.

    Raises:
        RunError: There is no average of them, or the file cannot be written.
    """
    prefix = AVERAGE if average else MODEL
    shapes = tensor_shapes(folder)
    if average and not any(name.startswith(AVERAGE) for name in shapes):
        raise RunError(f"{folder} has no average of the weights: that run had no Trainer.weight_average")
    names = {name.removeprefix(MODEL): name for name in shapes if name.startswith(MODEL)}
    names |= {name.removeprefix(prefix): name for name in shapes if name.startswith(prefix)}
    tensors = {source: torch.empty(shapes[source].shape, dtype=shapes[source].dtype) for source in names.values()}
    read_tensors(folder, tensors)
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        save_file({name: tensors[source] for name, source in names.items()}, temporary, {"format": "pt"})
        temporary.replace(file)
    except Exception as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"cannot write {file}: {getattr(error, 'strerror', None) or error}") from error
    return len(names)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _require_that_each_matches(patterns: Iterable[str], names: Collection[str]) -> None:
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise RunError(f"no weight is called {pattern!r} (--init_may_differ), such as {min(names)!r}")


def _begin_optimizer(state: TrainState, saved: Mapping[str, TensorShape]) -> set[str]:
    """Gives the optimizer the tensors that were saved, still without their values; returns the names of parameters."""
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
    """Where each parameter's count of steps is: torch keeps it on the host unless its kernel counts itself."""
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


def _require_equal(folder: Path, saved: Mapping[str, TensorShape], expected: Mapping[str, Tensor]) -> None:
    missing, unknown = expected.keys() - saved.keys(), saved.keys() - expected.keys()
    shapes = [
        f"{name}: {saved[name]}; the model has {TensorShape.of(tensor)}"
        for name, tensor in expected.items()
        if name in saved and saved[name] != TensorShape.of(tensor)
    ]
    problems = [_listed("missing", missing), _listed("not expected", unknown), _listed("of another shape", shapes)]
    if any(problems):
        raise RunError("\n".join([f"{folder} is of another model:", *filter(None, problems)]))


def _listed(title: str, names: Collection[str]) -> str:
    """The names below a title; nothing where there are none."""
    if not names:
        return ""
    shown = sorted(names)[:_MOST_NAMES]
    more = [f"and {len(names) - _MOST_NAMES} more"] if len(names) > _MOST_NAMES else []
    return "\n".join([f"  {title}:", *(f"    {line}" for line in [*shown, *more])])
