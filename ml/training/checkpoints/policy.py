"""When checkpoints are written, how many are kept, and which one a run goes on from."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from ml.config import configurable, require
from ml.training.checkpoints.atomic_folders import damage, remove_leftovers
from ml.training.checkpoints.saver import Saver
from ml.training.checkpoints.state_files import read_counts
from ml.training.errors import RunError


@configurable
class Checkpoints:
    """Saves the state of training in `checkpoints/step_N`, each folder whole or not there.

    Args:
        every: Steps between two checkpoints; one more is written when the run ends or is stopped. None for no other.
        keep: How many of the newest are kept; None for all.
        keep_every: Those of steps that it divides are kept too, however old; None for no other.
        asynchronous: Whether training goes on while a checkpoint is written. It takes the memory of a copy on the host.
    """

    def __init__(
        self,
        every: int | None = 500,
        keep: int | None = 2,
        keep_every: int | None = None,
        asynchronous: bool = True,
    ):
        for name, number in {"every": every, "keep": keep, "keep_every": keep_every}.items():
            require(number is None or number > 0, name, f"must be positive, not {number}")
        needless = keep is None and keep_every is not None
        require(not needless, "keep_every", "has no effect where Checkpoints.keep = None keeps all")
        self.every = every
        self.keep = keep
        self.keep_every = keep_every
        self.asynchronous = asynchronous

    def is_due(self, step: int, num_steps: int) -> bool:
        return step == num_steps or (self.every is not None and step % self.every == 0)

    def open(self, folder: Path, before_commit: Callable[[], None]) -> Saver:
        """What writes checkpoints below `folder`; `before_commit` is called before each is made valid."""
        return Saver(folder, self.is_kept, before_commit, asynchronous=self.asynchronous)

    def is_kept(self, step: int, num_newer: int) -> bool:
        """Whether the checkpoint of `step` stays, where so many newer ones are there."""
        is_one_of_the_newest = self.keep is None or num_newer < self.keep
        return is_one_of_the_newest or (self.keep_every is not None and step % self.keep_every == 0)


def newest_checkpoint(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint below `folder` that is whole, None in a fresh run; says which ones are not.

    Raises:
        RunError: There are checkpoints and none of them is whole: to start again is for a person to decide.
    """
    for unfinished in remove_leftovers(folder):
        say(f"skipping checkpoint {unfinished}: it was never finished")
    found = _found(folder)
    for _, checkpoint in reversed(found):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        say(f"skipping checkpoint {checkpoint}: {problem}")
    if found:
        raise RunError(f"no checkpoint in {folder} can be used; remove that folder to train from the beginning")
    return None


def open_checkpoint(folder: Path, step: int | None = None) -> Path:
    """The checkpoint of a step, or the newest whole one.

    Raises:
        RunError: There is none, or the one that was asked for is damaged.
    """
    steps = dict(_found(folder))
    if step is None:
        newest = next(whole_checkpoints(folder), None)
        if newest is None:
            raise RunError(f"there is no whole checkpoint in {folder}")
        return newest
    if step not in steps:
        there = ", ".join(map(str, steps)) or "none"
        raise RunError(f"there is no checkpoint of step {step} in {folder}; there are: {there}")
    if problem := damage(steps[step]):
        raise RunError(f"the checkpoint {steps[step]} cannot be used: {problem}")
    return steps[step]


def whole_checkpoints(folder: Path) -> Iterator[Path]:
    """Yields the checkpoints below `folder` that are whole, newest first."""
    return (path for _, path in reversed(_found(folder)) if damage(path) is None)


def _found(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints below `folder`, oldest first, with the steps that they say they are of, whatever their names."""
    folders = [path for path in folder.glob("*") if path.is_dir() and not path.name.startswith(".")]
    return sorted((step, path) for path in folders if (step := _step(path)) is not None)


def _step(checkpoint: Path) -> int | None:
    """What a checkpoint says, and its name where a damaged one says nothing or something else."""
    match = re.fullmatch(r"step_(\d+)", checkpoint.name)
    named = int(match[1]) if match else None
    try:
        said = int(read_counts(checkpoint)["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return named
    return said if named in (said, None) or damage(checkpoint) is None else named
