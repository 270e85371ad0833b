"""Comparison of the tensors of a checkpoint with the tensors to load."""

from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from ml.distributed import ALONE, World
from ml.training.checkpoints.tensor_files import TensorShape
from ml.training.errors import RunError

_MOST_NAMES = 20  # in a message


def require_equal(
    folder: Path, saved: Mapping[str, TensorShape], expected: Mapping[str, Tensor], world: World = ALONE
) -> None:
    """Requires equal names, shapes and dtypes; a collective call.

    Args:
        folder: The checkpoint, for the message.
        saved: The tensors of the checkpoint, by name.
        expected: The tensors that this process holds of the model, by name.
        world: The processes that hold the model.

    Raises:
        RunError: Some differ; the message lists them.
    """
    holders = world.host_sum([int(name in expected) for name in saved])
    unknown = {name for name, count in zip(saved, holders, strict=True) if count == 0}
    shapes = {
        f"{name}: {saved[name]}; the model has {TensorShape.of(tensor)}"
        for name, tensor in expected.items()
        if name in saved and saved[name] != TensorShape.of(tensor)
    }
    found = world.gather((expected.keys() - saved.keys(), shapes))
    missing, shapes = (set().union(*sets) for sets in zip(*found, strict=True))
    problems = [listed("missing", missing), listed("not expected", unknown), listed("of another shape", shapes)]
    if any(problems):
        raise world.common(RunError("\n".join([f"{folder} is of another model:", *filter(None, problems)])))


def listed(title: str, names: Collection[str]) -> str:
    """Formats names under a title; empty without names."""
    if not names:
        return ""
    shown = sorted(names)[:_MOST_NAMES]
    more = [f"and {len(names) - _MOST_NAMES} more"] if len(names) > _MOST_NAMES else []
    return "\n".join([f"  {title}:", *(f"    {line}" for line in [*shown, *more])])
