"""Checkpoint policy: interval, retention, and the checkpoint that a run resumes from."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from ml.config import configurable, require
from ml.distributed import ALONE, World
from ml.layers.checks import positive_float
from ml.training.checkpoints.atomic_folders import damage, remove_leftovers
from ml.training.checkpoints.holding import finish_removals, held
from ml.training.checkpoints.saver import Saver
from ml.training.checkpoints.state_files import best_step, read_counts, read_whole_counts
from ml.training.errors import RunError
from ml.training.evaluation.lowest import Lowest


@configurable(neutral=True)
class Checkpoints:
    """Saves the training state to `checkpoints/step_N`; each folder is written atomically.

    In a run of several processes each one writes the tensors that it holds. A run resumes on any mesh.

    Args:
        every: Steps between two checkpoints. The end or a stop of the run always writes one; None writes no other.
        keep: Number of newest checkpoints that are kept; None keeps all.
        keep_every: Also keeps every checkpoint whose step is a multiple of this number; None keeps only the newest.
        keep_best: Metric of a validation, such as "validation_loss", of which the checkpoint with the lowest value is
            also kept. It is saved after the validation, whatever `every`; None keeps none for its metrics.
        every_minutes: Also saves once this many minutes have passed since the last checkpoint; None saves by steps.
        asynchronous: Whether training continues during the write; needs host memory for a copy of the state.
    """

    def __init__(
        self,
        every: int | None = 500,
        keep: int | None = 2,
        keep_every: int | None = None,
        keep_best: str | None = None,
        every_minutes: float | None = None,
        asynchronous: bool = True,
    ):
        for name, number in {"every": every, "keep": keep, "keep_every": keep_every}.items():
            require(number is None or number > 0, name, f"must be positive, not {number}")
        needless = keep is None and keep_every is not None
        require(not needless, "keep_every", "has no effect where Checkpoints.keep = None keeps all")
        if every_minutes is not None:
            positive_float("every_minutes", every_minutes)
        self.every = every
        self.keep = keep
        self.keep_every = keep_every
        self.keep_best = keep_best
        self.every_minutes = every_minutes
        self.asynchronous = asynchronous

    def is_due(self, step: int, num_steps: int) -> bool:
        """Returns True if a run of `num_steps` steps saves after `step`."""
        return step == num_steps or (self.every is not None and step % self.every == 0)

    def is_due_by_time(self, seconds: float) -> bool:
        """Returns True if a run saves that many seconds after its last checkpoint."""
        return self.every_minutes is not None and seconds >= 60.0 * self.every_minutes

    def start(self) -> Lowest | None:
        """Returns the lowest value of the metric of `keep_best` before the first step; None without one."""
        return None if self.keep_best is None else Lowest(self.keep_best)

    def open(self, folder: Path, before_commit: Callable[[], None], world: World = ALONE) -> Saver:
        """Returns a saver of checkpoints in `folder`; a collective call.

        Args:
            folder: The folder that holds the checkpoints.
            before_commit: Called in rank 0 before each checkpoint becomes valid.
            world: The processes that hold the state.
        """
        return Saver(folder, self.is_kept, before_commit, world, asynchronous=self.asynchronous)

    def is_kept(self, step: int, num_newer: int) -> bool:
        """Returns True if the checkpoint of `step` is kept when `num_newer` newer ones exist."""
        is_one_of_the_newest = self.keep is None or num_newer < self.keep
        return is_one_of_the_newest or (self.keep_every is not None and step % self.keep_every == 0)


StepName = int | Literal["best"] | None
BEST = "best"

_Used = TypeVar("_Used")


class NoCheckpoint(RunError):
    """There is no such checkpoint."""


class _RemovedMeanwhile(Exception):
    """A checkpoint was removed after it was listed."""


def newest_checkpoint(folder: Path, say: Callable[[str], None], world: World = ALONE) -> Path | None:
    """Returns the newest valid checkpoint in `folder`, or None in a new run; a collective call.

    Args:
        folder: The folder that holds the checkpoints.
        say: Receives a line for each invalid checkpoint.
        world: The processes, which divide the check of the hashes among them.

    Raises:
        RunError: Checkpoints exist and none is valid; restarting from step 0 would need a decision of the user.
    """
    world.first(lambda: finish_removals(folder))
    for unfinished in world.first(lambda: remove_leftovers(folder)):
        say(f"skipping checkpoint {unfinished}: it was never finished")
    found = world.first(lambda: listed_checkpoints(folder))
    for _, checkpoint in reversed(found):
        problem = damage(checkpoint, world)
        if problem is None:
            return checkpoint
        say(f"skipping checkpoint {checkpoint}: {problem}")
    if found:
        raise world.common(RunError(f"no checkpoint in {folder} can be used; remove the folder to train from step 0"))
    return None


def open_checkpoint(folder: Path, step: StepName = None) -> Path:
    """Returns the folder of a valid checkpoint, which a run that is training may remove.

    Args:
        folder: The folder that holds the checkpoints.
        step: The step of the checkpoint; None for the newest valid one, "best" for that of `Checkpoints.keep_best`.

    Raises:
        RunError: No such checkpoint exists, or it is damaged.
    """
    return using_checkpoint(folder, step, lambda checkpoint: checkpoint)


def using_checkpoint(folder: Path, step: StepName, use: Callable[[Path], _Used]) -> _Used:
    """Calls a function with a valid checkpoint, which a run that is training does not remove until it returns.

    On a file system without locks, a checkpoint may be removed all the same; then the function is called again with the
    newest one.

    Args:
        folder: The folder that holds the checkpoints.
        step: The step of the checkpoint; None for the newest valid one, "best" for that of `Checkpoints.keep_best`.
        use: The function.

    Returns:
        The result of the function.

    Raises:
        RunError: No such checkpoint exists, or it is damaged.
    """
    while True:
        with contextlib.ExitStack() as stack:
            checkpoint = hold_checkpoint(folder, step, stack)
            identity = _identity(checkpoint)
            try:
                return use(checkpoint)
            except Exception:
                if identity is not None and _identity(checkpoint) == identity:
                    raise


def hold_checkpoint(folder: Path, step: StepName, stack: contextlib.ExitStack) -> Path:
    """Returns a valid checkpoint, which a run that is training does not remove until `stack` is closed.

    Args:
        folder: The folder that holds the checkpoints.
        step: The step of the checkpoint; None for the newest valid one, "best" for that of `Checkpoints.keep_best`.
        stack: Holds the checkpoint.

    Raises:
        RunError: No such checkpoint exists, or it is damaged.
    """
    while True:
        before = _identities(folder, step)
        try:
            return stack.enter_context(_opened(folder, step))
        except _RemovedMeanwhile:
            continue
        except RunError:
            if _identities(folder, step) == before:
                raise


def newest_counts(folder: Path) -> dict[str, Any]:
    """Returns the values of the newest valid checkpoint that are not tensors, `sequences` among them; empty if none."""
    try:
        return using_checkpoint(folder, None, read_whole_counts)
    except NoCheckpoint:
        return {}


@contextlib.contextmanager
def _opened(folder: Path, step: StepName) -> Iterator[Path]:
    """Holds a valid checkpoint inside the context."""
    if step == BEST:
        with _opened(folder, None) as newest:
            step = best_step(read_counts(newest))
        if step is None:
            raise RunError(f"no best checkpoint is known in {folder}: set Checkpoints.keep_best to keep it")
    found = listed_checkpoints(folder)
    there = ", ".join(str(number) for number, _ in found) or "none"
    candidates = [path for number, path in reversed(found) if step in (None, number)]
    problem = None
    for path in candidates:
        with held(path) as is_there:
            if not is_there:
                raise _RemovedMeanwhile  # a newer one has taken its place; an older one would not do
            problem = damage(path)
            if problem is None:
                yield path
                return
    if step is None:
        raise NoCheckpoint(f"there is no valid checkpoint in {folder}")
    if not candidates:
        raise NoCheckpoint(f"there is no checkpoint of step {step} in {folder}; there are: {there}")
    raise RunError(f"the checkpoint {candidates[-1]} cannot be used: {problem}")


def _identities(folder: Path, step: StepName) -> dict[Path, tuple[int, int] | None]:
    """Identifies the checkpoints that could be used, to notice that others have taken their place."""
    return {path: _identity(path) for number, path in listed_checkpoints(folder) if step in (None, BEST, number)}


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def listed_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Lists the checkpoints in `folder` by the step recorded in them, oldest first."""
    folders = [path for path in folder.glob("*") if path.is_dir() and not path.name.startswith(".")]
    return sorted((step, path) for path in folders if (step := _step(path)) is not None)


def _step(checkpoint: Path) -> int | None:
    """Reads the step recorded in a checkpoint; a damaged checkpoint falls back to the step in its name."""
    match = re.fullmatch(r"step_(\d+)", checkpoint.name)
    named = int(match[1]) if match else None
    try:
        recorded = int(read_counts(checkpoint)["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return named
    return recorded if named in (recorded, None) or damage(checkpoint) is None else named
