"""The training loop, from the first step or the newest checkpoint to the last step."""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple, TextIO

import torch

from ml.data import Batch, DataError
from ml.data.prefetch import prefetched
from ml.data.randomness import derive_seed
from ml.distributed import Layout, World
from ml.layers import Drawn
from ml.models.flops import flops_per_token
from ml.training.agreement import Agreement, agree
from ml.training.checkpoints.initial_weights import StartingPoint
from ml.training.checkpoints.policy import newest_checkpoint
from ml.training.checkpoints.state_files import read_state, snapshot
from ml.training.due_validations import DueValidations
from ml.training.ending import Ending
from ml.training.errors import RunError, RunFailure
from ml.training.evaluation.samples import SampleFile, shown
from ml.training.guide import Guide
from ml.training.host_memory import freed_pages_kept, freeze_objects, unfrozen_afterwards
from ml.training.metrics.progress import NoProgress, Progress, progress_on
from ml.training.metrics.throughput import Throughput
from ml.training.optimizers import apply_schedule, require_whole_state
from ml.training.profiling.step_windows import StepWindows
from ml.training.records import Records
from ml.training.run_data import RunData
from ml.training.run_folder import ReadOnlyRunFolder, RunFolder
from ml.training.signals import Requests, handled_signals
from ml.training.state import OPTIMIZER
from ml.training.step import train_step
from ml.training.summary import describe_kernels, notes
from ml.training.trackers import Tracking
from ml.training.trainer import Trainer


class Outcome(NamedTuple):
    """Result of a training process.

    Attributes:
        step: The last step that was taken.
        is_finished: Whether it is the last step of the run; False after a request to stop.
    """

    step: int
    is_finished: bool


def train(
    trainer: Trainer,
    data: RunData,
    run: RunFolder,
    device: torch.device,
    *,
    initial: StartingPoint | None = None,
    layout: Layout | None = None,
    teacher: Guide | None = None,
    begun: Callable[[int], None] = lambda step: None,
    stream: TextIO = sys.stdout,
) -> Outcome:
    """Trains to the last step and writes metrics, samples and checkpoints to the run folder.

    A stopped run resumes exactly: on one device with deterministic kernels, every later weight and metric is bitwise
    the same as without the stop. SIGINT, SIGTERM and SIGHUP stop after the current step and save a checkpoint; SIGUSR1
    saves a checkpoint and continues.

    Args:
        trainer: The settings of the run.
        data: The open data, from `trainer.open_data`.
        run: The run folder; created if it does not exist. Of several processes the first one writes to it.
        device: The device to train on.
        initial: `trainer.initial_weights`, opened; None opens it if there is no checkpoint.
        layout: The mesh of the processes of the run; None for a single process.
        teacher: The teacher of `trainer.distillation`, or the reference of `trainer.preference`, on `device`; None
            without both.
        begun: Called in the first process, which holds the folder then, with the last step before this start.
        stream: Receives the progress display.

    Returns:
        The last step that was taken.

    Raises:
        RunError: The folder, the initial weights or the machine do not fit the run.
        DataError: The first batch cannot be read.
        RunFailure: The loss is not finite, the disk is full, or the data cannot be read any more. Earlier checkpoints
            are untouched.
    """
    if (teacher is None) != (trainer.distillation is None and trainer.preference is None):
        raise RunError(
            "Trainer.distillation goes with a teacher, Trainer.preference with a reference: "
            "ml.runs.open_teacher(trainer, device) loads it"
        )
    if not trainer.length.is_known:
        raise RunError("Trainer.num_epochs needs Trainer.epoch_sequences, which ml.train finds: the length is unknown")
    trainer.check_machine(device)
    layout = Layout(World(device=device)) if layout is None else layout
    world = layout.world
    run = run if world.is_first else ReadOnlyRunFolder(run.path)
    progress = progress_on(stream, trainer.num_steps) if world.is_first else NoProgress()
    trackers, windows = (trainer.trackers, trainer.windows) if world.is_first else ((), ())
    with contextlib.ExitStack() as stack:
        if device.type == "cpu":
            stack.enter_context(freed_pages_kept())
        stack.enter_context(unfrozen_afterwards())
        requests = stack.enter_context(handled_signals(answers=world.is_first))
        world.first(run.create)
        world.first(lambda: stack.enter_context(run.locked()))
        tracking = stack.enter_context(Tracking(trackers, progress.say))
        recording = stack.enter_context(StepWindows(windows, run.profiles, device, progress.say))
        stack.enter_context(contextlib.closing(progress))
        loop = TrainLoop(trainer, data, run, layout, teacher, progress, requests, tracking, recording, initial)
        with contextlib.closing(loop.saver):
            loop.resume(initial, begun)
            loop.run_steps()
            loop.finish()
    return Outcome(loop.state.step, loop.is_finished)


class TrainLoop:
    """A run in progress, seen from one process; owns the training state, the data and the open files."""

    def __init__(
        self,
        trainer: Trainer,
        data: RunData,
        run: RunFolder,
        layout: Layout,
        teacher: Guide | None,
        progress: Progress,
        requests: Requests,
        tracking: Tracking,
        windows: StepWindows,
        initial: StartingPoint | None = None,
    ):
        self.trainer = trainer
        self.data = data
        self.run = run
        self.layout = layout
        self.world = layout.world
        self.device = layout.device
        self.teacher = teacher
        self.progress = progress
        self.requests = requests
        self.tracking = tracking
        self.windows = windows
        self.saver = trainer.checkpoints.open(run.checkpoints, self._flush, self.world)
        flops = flops_per_token(trainer.model, trainer.sequence_length)
        given = () if initial is None else initial.given(trainer.model)
        self.state = trainer.start(self.device, layout, given)
        peak = self.world.first(lambda: trainer.peak_flops(self.device).flops_per_second)
        self.throughput = Throughput(flops, self.world.size * peak, self.device)
        self._records = Records(trainer, self.state, self.throughput, data.training.num_sequences)
        self._samples = SampleFile(run.path)
        self._data_sha256, self._order_sha256 = data.sha256, data.order_sha256()
        self._drawing = [(name, m) for name, m in self.state.model.named_modules() if isinstance(m, Drawn)]
        for note in (describe_kernels(trainer, self.device.type), *notes(trainer)):
            if note is not None:
                progress.say(note)
        self.ending = Ending(trainer, self.state, requests)
        sets = data.validation_sets
        self.validations = DueValidations(trainer, sets, self.state, layout, teacher, self.ending.stops)
        self._first_step = 0
        self._saved_step = 0
        self._saved_at = time.monotonic()
        self._seconds_before = 0.0

    @property
    def is_finished(self) -> bool:
        """True once the last step is taken and validated."""
        return self.ending.is_finished

    def resume(self, initial: StartingPoint | None = None, begun: Callable[[int], None] = lambda step: None) -> None:
        """Resumes from the newest valid checkpoint and removes the metrics after it.

        Args:
            initial: `trainer.initial_weights`, opened; None opens it if there is no checkpoint.
            begun: Called in the first process with the last step before this start.

        Raises:
            RunError: The checkpoint belongs to other data or another model.
        """
        checkpoint = newest_checkpoint(self.run.checkpoints, self.progress.say, self.world)
        if checkpoint is not None:
            read_state(checkpoint, self.state, self._data_sha256)
            self.progress.say(f"resuming from {checkpoint}")
        else:
            settings = self.trainer.initial_weights
            if initial is None and settings is not None:
                initial = settings.open(self.world)
            if initial is not None:
                initial.load(self.state, self.data, self.progress.say)
        self.world.first(lambda: begun(self.state.step))  # before trackers read the configuration
        unvalidated = self.state.unvalidated
        self.run.truncate_metrics(self.state.step if unvalidated is None else self.state.step - 1)
        if self.world.is_first:
            self._samples.truncate(self.state.step)
        self.saver.resume(self.state.step)
        self._saved_step = 0 if checkpoint is None else self.state.step
        self._seconds_before = self.state.seconds
        if not self.is_finished:
            self.tracking.start(self.run, self.state.step)
        self.throughput.restart()
        self.progress.start(self.state.step)
        if unvalidated is not None:
            self._saved_step = 0  # the checkpoint records that the validation is pending
            self._record(unvalidated)

    def run_steps(self) -> None:
        """Takes the remaining steps, until a request to stop."""
        self._first_step = self.state.step
        with self.reading_data(), contextlib.closing(self.batches()) as steps:
            while not self.ending.is_at_end and not self.ending.is_at_stop:
                read = self._next(steps)
                agreed = self._agree(read)
                if agreed.stop:
                    return
                assert isinstance(read, list)  # otherwise they have agreed to end
                take = self.advance if self.state.step else self.begin
                take(read, agreed)

    def _next(self, steps: Iterator[list[Batch]]) -> list[Batch] | Exception:
        """Returns the micro-batches of the next step, or the error that prevents it."""
        try:
            with self.reading_data():
                return next(steps)
        except (DataError, RunFailure) as error:
            return error

    def _agree(self, read: list[Batch] | Exception) -> Agreement:
        stop, save = self.ending.stops(), self._saves()
        return agree(read, self.layout, self.teacher, self.saver, stop=stop, save=save)

    def batches(self) -> Generator[list[Batch], None, None]:
        """Yields the micro-batches of each remaining step, loaded in the background."""
        steps = range(self.state.step + 1, self.trainer.num_steps + 1)
        skipped = self.state.sequences - self.state.step * self.trainer.batch_size  # 0 if the batch size never changed
        load = functools.partial(self._load, skipped=skipped)
        return self.throughput.waiting(prefetched(load, steps, self.trainer.num_loader_workers))

    @contextlib.contextmanager
    def reading_data(self) -> Iterator[None]:
        """Separates data that cannot be used at all from data that was lost or damaged during the run.

        Raises:
            DataError: The batches of the first step of this process cannot be read.
            RunFailure: The batches of a later step or the held-out text cannot be read.
        """
        try:
            yield
        except DataError as error:
            if self.state.step == self._first_step:
                raise
            raise RunFailure(
                f"the data cannot be read after step {self.state.step}, and training stopped; {self._kept()}. {error}"
            ) from error

    def begin(self, batches: list[Batch], agreed: Agreement) -> None:
        """Takes the first step of the run and reports components that do not fit each other.

        Args:
            batches: The micro-batches of this process.
            agreed: What the processes agreed on before the step.

        Raises:
            RunError: The step cannot be taken.
        """
        try:
            before = self.state.tensors().keys()
            self.advance(batches, agreed)
            added = self.state.tensors().keys() - before
            require_whole_state(self.trainer.optimizer, [name for name in added if name.startswith(OPTIMIZER)])
        except ValueError as error:
            raise RunError(f"the first step cannot be taken: {error}") from error
        freeze_objects()

    def advance(self, batches: list[Batch], agreed: Agreement) -> None:
        """Takes a step; validates, logs, samples and saves where due.

        Args:
            batches: The micro-batches of this process.
            agreed: What the processes agreed on before the step.

        Raises:
            RunFailure: The loss is not finite, or a file cannot be written.
        """
        trainer, step = self.trainer, self.state.step + 1
        self.windows.before(step)
        _seed(self.device, derive_seed(trainer.seed, "dropout", step, *self.layout.part))
        for name, module in self._drawing:
            module.draw(torch.Generator().manual_seed(derive_seed(trainer.seed, "draw", name, step)))
        apply_schedule(self.state.optimizer, trainer.schedule(step))
        settings = (trainer.precision, trainer.max_grad_norm, self.device, self.teacher)
        result = train_step(self.state, batches, *settings, agreed.num_targets, agreed.num_units)
        self.state.sequences += trainer.batch_size
        self.throughput.count(agreed.num_targets, agreed.num_tokens)
        self.progress.advance(step)
        if trainer.is_logged(step) or self.validations.due:
            self._require_finite()
            self._record(self._records.of(result, self._seconds()))
        if trainer.samples is not None and trainer.samples.is_due(step, trainer.num_steps):
            self._sample()
        if self.windows.after(step):
            self.throughput.restart()
        if agreed.save:
            self.requests.save = False
        if agreed.save or self.state.is_best or trainer.checkpoints.is_due(step, trainer.num_steps):
            self.save()

    def save(self) -> None:
        """Writes a checkpoint, or starts to write it, unless this step was saved already.

        Raises:
            RunFailure: The loss is not finite, or the disk is full.
        """
        if self._saved_step == self.state.step:
            return
        self._require_finite()
        self.state.seconds = self._seconds()
        hashes = (self._data_sha256, self.run.operative_config(), self._order_sha256)
        self.saver.save(snapshot(self.state, *hashes))
        self._saved_step, self._saved_at = self.state.step, time.monotonic()
        self.throughput.restart()

    def finish(self) -> None:
        """Saves the last step and reports the end of the process."""
        if self.state.step:
            self.save()
        self.saver.wait()
        self.progress.close()
        self.progress.say(self.ending.report(self.run.path))

    def _load(self, step: int, skipped: int) -> list[Batch]:
        part = (self.layout.data_rank, self.layout.num_data_ranks)
        consumed = (step - 1) * self.trainer.batch_size + skipped
        batches = self.trainer.batches(self.data.training, step, *part, consumed=consumed)
        return [batch.ready_for(self.device) for batch in batches]

    def _record(self, record: dict[str, Any]) -> None:
        """Logs a step after its validation; an interrupted validation is left to the next process."""
        validated = self.validations.measure()
        if self.validations.due:
            self.throughput.restart()
        if validated is None:
            self.state.unvalidated = record
            return
        self.state.unvalidated = None
        record |= validated
        self.world.first(lambda: self.run.append_metrics(record))
        self.progress.report(record)
        self.tracking.log(record)
        for lowest in self.state.lowest.values():
            lowest.update(record)

    def _saves(self) -> bool:
        """Returns whether this process was requested to save, or the first one saves by time."""
        is_due = self.world.is_first and self.trainer.checkpoints.is_due_by_time(time.monotonic() - self._saved_at)
        return self.requests.save or is_due

    def _sample(self) -> None:
        self._require_finite()
        trainer = self.trainer
        assert trainer.samples is not None  # otherwise they are never due
        for record in trainer.samples.draw(self.state.model, trainer.data, trainer.precision, self.device, self.world):
            sample = {"step": self.state.step, **record}
            self.world.first(functools.partial(self._samples.append, sample))
            self.progress.say(f"step {self.state.step} writes {shown(record)!r}")
        self.throughput.restart()

    def _flush(self) -> None:
        """Flushes metrics and samples to disk before a checkpoint becomes valid."""
        self.run.flush_metrics()
        self._samples.flush()

    def _require_finite(self) -> None:
        step, guard = self.state.first_nonfinite_step.item(), self.state.skip_step
        problem = f"the loss or its gradient is not finite since step {step}" if step else guard and guard.problem()
        if problem:
            optimizer = type(self.trainer.optimizer).__name__
            raise self.world.common(
                RunFailure(
                    f"{problem}, and training stopped; {self._kept()}. "
                    f"Try a lower {optimizer}.learning_rate, more warmup or a lower Trainer.max_grad_norm"
                )
            )

    def _kept(self) -> str:
        return f"checkpoints/step_{self._saved_step} is from before it" if self._saved_step else "nothing was saved"

    def _seconds(self) -> float:
        """Returns the duration of the run so far, over all of its processes."""
        return self._seconds_before + self.ending.seconds


def _seed(device: torch.device, seed: int) -> None:
    """Seeds the generators of the CPU and of a device; `torch.manual_seed` prepares all kinds of device, in 1 ms."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)
