"""Synchronous and asynchronous writing of checkpoints, one at a time."""

import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from ml.distributed import World
from ml.distributed.shards import local
from ml.files import reason_of
from ml.training.checkpoints.atomic_folders import Entries, begin, discard, is_complete, publish, sealed, temporary
from ml.training.checkpoints.holding import remove_unless_held
from ml.training.checkpoints.staging import Staging
from ml.training.checkpoints.state_files import Snapshot, WrittenPart, write_part, write_rest
from ml.training.checkpoints.tensor_files import WritePlan, files_of, plan_writing
from ml.training.errors import RunFailure


class _Report(NamedTuple):
    """Result of the write of one process: its files, or its error."""

    part: WrittenPart | None
    entries: Entries
    problem: str | None


class Saver:
    """Writes checkpoints to a folder and removes old ones.

    Every process writes the tensors that it holds. An asynchronous save copies the state to host memory and writes it
    in a thread; the next save waits for the previous one. An error of the thread is raised by the next call.
    """

    def __init__(
        self,
        folder: Path,
        is_kept: Callable[[int, int], bool],
        before_commit: Callable[[], None],
        world: World,
        *,
        asynchronous: bool,
    ):
        """Creates a saver; a collective call, as every method unless documented otherwise.

        Args:
            folder: The folder that holds the checkpoints.
            is_kept: Called with the step of a checkpoint and the number of newer ones; False removes it.
            before_commit: Called in rank 0 before each checkpoint becomes valid.
            world: The processes that hold the state.
            asynchronous: Whether checkpoints are written in a thread.
        """
        self._folder = folder
        self._is_kept = is_kept
        self._before_commit = before_commit
        self._world = world
        self._world_of_thread = world.for_thread()
        self._plan: WritePlan | None = None
        self._staging = Staging()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if asynchronous else None
        self._pending: Future[None] | None = None
        self._unusable: set[Path] = set()

    def resume(self, step: int) -> None:
        """Notes that the run resumes after `step`, so that its later checkpoints are damaged; no collective call."""
        self._unusable = {path for there, path in self._there() if there > step}

    def save(self, taken: Snapshot) -> None:
        """Writes a checkpoint, or starts to write it.

        Args:
            taken: The state to save.

        Raises:
            RunFailure: This checkpoint or the previous one could not be written; earlier ones are untouched.
        """
        self.wait()
        self._plan = plan = plan_writing(taken.tensors, self._world, self._plan)
        self._world.first(lambda: self._begin(taken.step))
        tensors = {name: local(taken.tensors[name]) for name in plan.names}
        if self._pool is None:
            self._world.together(lambda: self._write(taken._replace(tensors=tensors), plan, lambda: None))
            return
        tensors, wait_for_copy = self._staging.copy(tensors)
        self._pending = self._pool.submit(self._write, taken._replace(tensors=tensors), plan, wait_for_copy)

    @property
    def has_failed(self) -> bool:
        """True once the thread of this process has failed, which `wait` raises; no collective call."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def wait(self) -> None:
        """Waits for the checkpoint in progress.

        Raises:
            RunFailure: It could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            self._world.together(pending.result)

    def close(self) -> None:
        """Waits for the checkpoint in progress and ignores its errors; no collective call."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def _begin(self, step: int) -> None:
        try:
            begin(self._of(step))
        except OSError as error:
            raise RunFailure(self._failed(step, reason_of(error))) from error

    def _write(self, taken: Snapshot, plan: WritePlan, wait_for_copy: Callable[[], None]) -> None:
        """Writes the part of this process; rank 0 publishes the checkpoint once all parts are on the disk."""
        unexpected = None
        try:
            report = self._report(taken, plan, wait_for_copy)
        except Exception as error:  # the other processes wait for a report
            report, unexpected = _Report(None, {}, f"{type(error).__name__}: {error}"), error
        try:
            reports = self._world_of_thread.collect(report)
        except RuntimeError as error:  # another process died
            raise RunFailure(self._failed(taken.step, reason_of(error))) from error
        if reports is not None:
            self._publish(taken, plan, reports, unexpected)

    def _report(self, taken: Snapshot, plan: WritePlan, wait_for_copy: Callable[[], None]) -> _Report:
        folder = temporary(self._of(taken.step))
        try:
            wait_for_copy()
            part = write_part(folder, taken, plan)
            return _Report(part, sealed([folder / name for name in files_of(part.tensors)]), None)
        except (OSError, RuntimeError) as error:  # torch's file writer raises RuntimeError
            return _Report(None, {}, reason_of(error))

    def _publish(self, taken: Snapshot, plan: WritePlan, reports: list[_Report], unexpected: Exception | None) -> None:
        folder = self._of(taken.step)
        hidden = temporary(folder)
        try:
            if unexpected is not None:
                raise unexpected
            for report in reports:
                if report.problem is not None:
                    raise RuntimeError(report.problem)
            rest = write_rest(hidden, taken, plan, [report.part for report in reports if report.part is not None])
            self._before_commit()
            entries = [*(report.entries for report in reports), sealed([hidden / name for name in rest])]
            publish(folder, {name: entry for part in entries for name, entry in part.items()})
        except (OSError, RuntimeError) as error:
            raise RunFailure(self._failed(taken.step, reason_of(error))) from error
        finally:
            discard(folder)
        self._unusable.discard(folder)
        self._remove_old(taken.best_step)

    def _failed(self, step: int, reason: str) -> str:
        before = [there for there, _ in self._there() if there != step]
        last = f"the one of step {max(before)} is untouched" if before else "there is no earlier one"
        return f"the checkpoint of step {step} could not be written to {self._folder}: {reason}; {last}"

    def _remove_old(self, best_step: int | None) -> None:
        """Removes checkpoints that the policy does not keep; damaged ones do not count as newer."""
        num_newer = 0
        for step, path in reversed(self._there()):
            if step != best_step and not self._is_kept(step, num_newer):
                remove_unless_held(path)
            elif path not in self._unusable and is_complete(path):
                num_newer += 1

    def _of(self, step: int) -> Path:
        return self._folder / f"step_{step}"

    def _there(self) -> list[tuple[int, Path]]:
        """Lists the checkpoints by the step in their name, oldest first."""
        matches = [(re.fullmatch(r"step_(\d+)", path.name), path) for path in self._folder.glob("step_*")]
        return sorted((int(match[1]), path) for match, path in matches if match)
