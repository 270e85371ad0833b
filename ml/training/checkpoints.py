"""When checkpoints are written, how many are kept, and which one a run goes on from."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from ml.config import configurable, require
from ml.training.committed import commit, damage, remove_leftovers
from ml.training.errors import RunError, RunFailure
from ml.training.state import TrainState
from ml.training.state_files import write_state


@configurable
class Checkpoints:
    """Saves the state of training in `checkpoints/step_N`, each folder whole or not there.

    Args:
        every: Steps between two checkpoints; one more is written when the run ends or is stopped. None for no other.
        keep: How many of the newest are kept; None for all.
    """

    def __init__(self, every: int | None = 500, keep: int | None = 2):
        require(every is None or every > 0, "every", f"must be positive, not {every}")
        require(keep is None or keep > 0, "keep", f"must be positive, not {keep}")
        self.every = every
        self.keep = keep

    def is_due(self, step: int, num_steps: int) -> bool:
        return step == num_steps or (self.every is not None and step % self.every == 0)

    def save(self, folder: Path, state: TrainState, data_sha256: str, operative_config: str | None) -> None:
        """Writes a checkpoint of `state` below `folder`, then removes the oldest ones.

        Raises:
            RunFailure: The disk takes no more; the checkpoints that were there still are.
        """
        before = [step for step, _ in _found(folder)]
        try:
            commit(
                folder / f"step_{state.step}",
                lambda temporary: write_state(temporary, state, data_sha256, operative_config),
            )
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            last = f"the one of step {max(before)} is untouched" if before else "there is none before it"
            raise RunFailure(
                f"the checkpoint of step {state.step} could not be written to {folder}: {reason}; {last}"
            ) from error
        for _, old in _found(folder)[: -self.keep] if self.keep else []:
            shutil.rmtree(old, ignore_errors=True)


def newest_checkpoint(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint below `folder` that is whole, None in a fresh run; says which ones are not.

    Raises:
        RunError: There are checkpoints and none of them is whole: to start again is for a person to decide.
    """
    remove_leftovers(folder)
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
        whole = [path for path in reversed(steps.values()) if damage(path) is None]
        if not whole:
            raise RunError(f"there is no whole checkpoint in {folder}")
        return whole[0]
    if step not in steps:
        there = ", ".join(map(str, steps)) or "none"
        raise RunError(f"there is no checkpoint of step {step} in {folder}; there are: {there}")
    if problem := damage(steps[step]):
        raise RunError(f"the checkpoint {steps[step]} cannot be used: {problem}")
    return steps[step]


def _found(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints below `folder` with their steps, oldest first."""
    matches = [(re.fullmatch(r"step_(\d+)", path.name), path) for path in folder.glob("step_*")]
    return sorted((int(match[1]), path) for match, path in matches if match)
