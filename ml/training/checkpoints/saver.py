"""Synchronous and asynchronous writing of checkpoints, one at a time."""

import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ml.training.checkpoints.atomic_folders import commit
from ml.training.checkpoints.staging import Staging
from ml.training.checkpoints.state_files import Snapshot, write_snapshot
from ml.training.errors import RunFailure


class Saver:
    """Writes checkpoints to a folder and removes old ones.

    An asynchronous save copies the state to host memory and writes it in a thread; the next save waits for the previous
    one. An error of the thread is raised by the next call.
    """

    def __init__(
        self,
        folder: Path,
        is_kept: Callable[[int, int], bool],
        before_commit: Callable[[], None],
        *,
        asynchronous: bool,
    ):
        """Creates a saver.

        Args:
            folder: The folder that holds the checkpoints.
            is_kept: Called with the step of a checkpoint and the number of newer ones; False removes it.
            before_commit: Called before each checkpoint becomes valid.
            asynchronous: Whether checkpoints are written in a thread.
        """
        self._folder = folder
        self._is_kept = is_kept
        self._before_commit = before_commit
        self._staging = Staging()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if asynchronous else None
        self._pending: Future[None] | None = None

    def save(self, taken: Snapshot) -> None:
        """Writes a checkpoint, or starts to write it.

        Args:
            taken: The state to save.

        Raises:
            RunFailure: This checkpoint or the previous one could not be written; earlier ones are untouched.
        """
        self.wait()
        if self._pool is None:
            self._write(taken, lambda: None)
            return
        tensors, wait_for_copy = self._staging.copy(taken.tensors)
        self._pending = self._pool.submit(self._write, taken._replace(tensors=tensors), wait_for_copy)

    def check(self) -> None:
        """Raises an error of the thread since the last call, without waiting.

        Raises:
            RunFailure: The checkpoint could not be written.
        """
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Waits for the checkpoint in progress.

        Raises:
            RunFailure: It could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Waits for the checkpoint in progress and ignores its errors."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def _write(self, taken: Snapshot, wait_for_copy: Callable[[], None]) -> None:
        def write(folder: Path) -> None:
            wait_for_copy()
            write_snapshot(folder, taken)
            self._before_commit()

        try:
            commit(self._folder / f"step_{taken.step}", write)
        except (OSError, RuntimeError) as error:  # torch's file writer raises RuntimeError
            raise RunFailure(self._failed(taken.step, error)) from error
        self._remove_old()

    def _failed(self, step: int, error: Exception) -> str:
        before = [there for there, _ in self._there() if there != step]
        last = f"the one of step {max(before)} is untouched" if before else "there is no earlier one"
        reason = getattr(error, "strerror", None) or error
        return f"the checkpoint of step {step} could not be written to {self._folder}: {reason}; {last}"

    def _remove_old(self) -> None:
        for num_newer, (step, path) in enumerate(reversed(self._there())):
            if not self._is_kept(step, num_newer):
                shutil.rmtree(path, ignore_errors=True)

    def _there(self) -> list[tuple[int, Path]]:
        """Lists the checkpoints by the step in their name, oldest first."""
        matches = [(re.fullmatch(r"step_(\d+)", path.name), path) for path in self._folder.glob("step_*")]
        return sorted((int(match[1]), path) for match, path in matches if match)
