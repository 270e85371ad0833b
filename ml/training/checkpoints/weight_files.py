"""Weights of a checkpoint: loading into a model and standalone weight export."""

import fnmatch
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ml.distributed import ALONE, World, weights_changed
from ml.distributed.shards import local
from ml.training.checkpoints.mismatches import require_equal
from ml.training.checkpoints.tensor_files import TensorShape, read_tensors, tensor_shapes
from ml.training.errors import RunError
from ml.training.state import AVERAGE, MODEL, named_weights


class LoadedWeights(NamedTuple):
    """Weights after loading.

    Attributes:
        kept: The names of the model's weights that were not loaded.
        converted: The dtypes of the weights that have another one in the checkpoint, (there, here), by name.
    """

    kept: list[str]
    converted: dict[str, tuple[torch.dtype, torch.dtype]]


@torch.no_grad()
def read_weights(
    folder: Path,
    model: nn.Module,
    may_lack: Collection[str] = (),
    may_differ: Iterable[str] = (),
    *,
    average: bool = False,
    world: World = ALONE,
) -> LoadedWeights:
    """Loads the weights of a checkpoint into `model`, in place, on any mesh; a collective call.

    Args:
        folder: The checkpoint.
        model: The model; its weights keep their names, shapes and dtypes, and floating-point values are converted.
        may_lack: Names of weights that may be missing from the checkpoint.
        may_differ: Patterns of names, such as "head.*". Matching weights are skipped if they are missing on either side
            or differ in shape.
        average: Whether to load the running average of the weights instead of the last weights.
        world: The processes that hold the model.

    Raises:
        RunError: The checkpoint belongs to another model; the message lists the differences.
    """
    saved = world.together(lambda: tensor_shapes(folder))
    sources = world.together(lambda: _sources(folder, saved, average))
    weights = named_weights(model)
    names = set().union(*world.gather(weights.keys() | sources.keys()))
    world.together(lambda: _require_that_each_matches(may_differ, names))
    found = {name: _as_in_model(saved[source], weights.get(name)) for name, source in sources.items()}
    strict = {
        name: weight
        for name, weight in weights.items()
        if not _matches(name, may_differ) and (name in sources or name not in may_lack)
    }
    compared = {name: shape for name, shape in found.items() if not _matches(name, may_differ)}
    require_equal(folder, compared, strict, world)
    read = {
        name: weight for name, weight in weights.items() if name in sources and found[name] == TensorShape.of(weight)
    }
    buffers = {name: _like(weight, saved[sources[name]]) for name, weight in read.items()}
    world.together(lambda: read_tensors(folder, {sources[name]: buffer for name, buffer in buffers.items()}))
    for name, buffer in buffers.items():
        if buffer is not read[name]:
            local(read[name]).copy_(local(buffer))
    weights_changed(model)
    own = {name: saved[MODEL + name].dtype for name in read if MODEL + name in saved}  # an average has a wider dtype
    converted = {name: (dtype, read[name].dtype) for name, dtype in own.items() if dtype != read[name].dtype}
    parts = world.gather((weights.keys() - read.keys(), converted))
    kept = sorted(set().union(*(names for names, _ in parts)))
    return LoadedWeights(kept, {name: dtypes for _, part in parts for name, dtypes in part.items()})


def export_weights(folder: Path, file: Path, *, average: bool = False, tokenizer: str | None = None) -> int:
    """Exports the weights of a checkpoint to one safetensors file, under their names in the model.

    Args:
        folder: The checkpoint.
        file: The file to write.
        average: Whether to export the running average of the weights instead of the last weights.
        tokenizer: Identity of the tokenizer, for the metadata of the file; None omits it.

    Returns:
        The number of tensors written.

    Raises:
        RunError: The checkpoint has no average, or the file cannot be written.
    """
    shapes = tensor_shapes(folder)
    sources = _sources(folder, shapes, average)
    tensors = {source: torch.empty(shapes[source].shape, dtype=shapes[source].dtype) for source in sources.values()}
    read_tensors(folder, tensors)
    write_weights(file, {name: tensors[source] for name, source in sources.items()}, tokenizer=tokenizer)
    return len(sources)


def write_weights(file: Path, weights: Mapping[str, Tensor], *, tokenizer: str | None = None) -> None:
    """Writes weights to one safetensors file, which replaces one that is there.

    Args:
        file: The file to write.
        weights: The weights by their names in the model.
        tokenizer: Identity of the tokenizer, for the metadata of the file; None omits it.

    Raises:
        RunError: The file cannot be written.
    """
    metadata = {"format": "pt", **({} if tokenizer is None else {"tokenizer_identity": tokenizer})}
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        save_file(dict(weights), temporary, metadata)
        temporary.replace(file)
    except Exception as error:  # safetensors raises its own error for a full disk
        temporary.unlink(missing_ok=True)
        raise RunError(f"cannot write {file}: {getattr(error, 'strerror', None) or error}") from error


def saved_shapes(folder: Path, *, average: bool = False) -> dict[str, TensorShape]:
    """Returns dtype and shape of each weight of a checkpoint, by its name in the model.

    Raises:
        RunError: The checkpoint has no average.
    """
    shapes = tensor_shapes(folder)
    return {name: shapes[source] for name, source in _sources(folder, shapes, average).items()}


def read_whole(folder: Path, names: Iterable[str], *, average: bool = False) -> dict[str, Tensor]:
    """Reads weights of a checkpoint whole, in main memory, whatever the mesh.

    Args:
        folder: The checkpoint.
        names: Their names in the model.
        average: Whether to read the running average of the weights instead of the last weights.

    Raises:
        RunError: The checkpoint has no average.
    """
    shapes = tensor_shapes(folder)
    sources = _sources(folder, shapes, average)
    tensors = {name: torch.empty(shapes[sources[name]].shape, dtype=shapes[sources[name]].dtype) for name in names}
    read_tensors(folder, {sources[name]: tensor for name, tensor in tensors.items()})
    return tensors


def _sources(folder: Path, saved: Mapping[str, TensorShape], average: bool) -> dict[str, str]:
    """Maps each weight of the model to its name in the checkpoint; a weight without an average maps to itself."""
    sources = {name.removeprefix(MODEL): name for name in saved if name.startswith(MODEL)}
    averaged = {name.removeprefix(AVERAGE): name for name in saved if name.startswith(AVERAGE)}
    if average and not averaged:
        raise RunError(f"{folder} has no average of the weights: that run had no Trainer.weight_average")
    return sources | averaged if average else sources


def _as_in_model(saved: TensorShape, weight: Tensor | None) -> TensorShape:
    """Returns dtype and shape of a weight after loading, which converts floating-point values."""
    if weight is None or not weight.is_floating_point() or not saved.dtype.is_floating_point:
        return saved
    return saved._replace(dtype=weight.dtype)


def _like(weight: Tensor, saved: TensorShape) -> Tensor:
    """Returns the weight itself, or an empty tensor of the saved dtype."""
    return weight if weight.dtype == saved.dtype else torch.empty_like(weight, dtype=saved.dtype)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _require_that_each_matches(patterns: Iterable[str], names: Collection[str]) -> None:
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise RunError(f"no weight matches {pattern!r} (--init_may_differ); one weight is {min(names)!r}")
