"""Training from the first step, or from the newest checkpoint, to the last."""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch

from ml.data import Batch, Dataset
from ml.data.prefetch import prefetched
from ml.data.randomness import derive_seed
from ml.models.adapters import adapter_weights
from ml.models.flops import flops_per_token
from ml.training.checkpoints import newest_checkpoint
from ml.training.errors import RunError, RunFailure
from ml.training.meter import Meter
from ml.training.optimizers import set_learning_rate
from ml.training.progress import Progress, progress_on
from ml.training.router_load import spread
from ml.training.run_folder import RunFolder
from ml.training.signals import stop_on_signals
from ml.training.state_files import read_state, read_weights
from ml.training.step import StepResult, train_step
from ml.training.trackers import Tracking
from ml.training.trainer import Trainer
from ml.training.windows import Windows


class Outcome(NamedTuple):
    """How training ended: at the last step, or at an earlier one because somebody asked."""

    step: int
    is_finished: bool


def train(
    trainer: Trainer,
    dataset: Dataset,
    run: RunFolder,
    device: torch.device,
    *,
    initial: Path | None = None,
    stream: TextIO = sys.stdout,
) -> Outcome:
    """Trains to the last step and leaves everything in the folder of the run.

    A run that was stopped goes on as if it never had been: on one device with deterministic kernels, every later
    weight and metric is the same to the last bit. SIGINT and SIGTERM end it after the step that is being taken, with a
    checkpoint.

    Args:
        trainer: What is trained and how; its model may still be on the meta device.
        dataset: What `trainer.open_data` gave.
        run: The folder, which is made where it is not there.
        device: Where to train.
        initial: A checkpoint whose weights a fresh run starts from.
        stream: Takes the progress.

    Raises:
        RunError: The folder, the initial weights or the machine do not fit the run.
        RunFailure: The loss is not finite, or the disk takes no more. Checkpoints that were there still are.
    """
    trainer.check_machine()
    run.create()
    progress = progress_on(stream, trainer.num_steps)
    with (
        stop_on_signals() as stop,
        Tracking(trainer.trackers, progress.say) as tracking,
        Windows(trainer.windows, run.profiles, device, progress.say) as windows,
        contextlib.closing(progress),
    ):
        training = Training(trainer, dataset, run, device, progress, tracking, windows)
        training.resume(initial)
        for batches in training.batches():
            if training.state.step:
                training.advance(batches)
            else:
                training.begin(batches)
            if stop:
                break
        training.finish()
    return Outcome(training.state.step, training.state.step >= trainer.num_steps)


class Training:
    """One process's part of a run."""

    def __init__(
        self,
        trainer: Trainer,
        dataset: Dataset,
        run: RunFolder,
        device: torch.device,
        progress: Progress,
        tracking: Tracking,
        windows: Windows,
    ):
        self.trainer = trainer
        self.dataset = dataset
        self.run = run
        self.device = device
        self.progress = progress
        self.tracking = tracking
        self.windows = windows
        self.teacher = trainer.open_teacher(device)
        self.state = trainer.start(device)
        flops = flops_per_token(self.state.model, trainer.sequence_length)
        self.meter = Meter(flops, trainer.peak_flops(device).flops_per_second, device)
        self._router_names = {module: name for name, module in self.state.model.named_modules()}
        self._drawing = [(name, m) for name, m in self.state.model.named_modules() if hasattr(m, "draw")]
        self._saved_step = 0
        self._begun = time.monotonic()
        self._seconds_before = 0.0

    def resume(self, initial: Path | None = None) -> None:
        """Goes back to the newest whole checkpoint and forgets what was measured after it.

        Where there is none, the weights of the checkpoint `initial` replace those that the model was made with.

        Raises:
            RunError: It is of other data or of another model.
        """
        checkpoint = newest_checkpoint(self.run.checkpoints, self.progress.say)
        if checkpoint is not None:
            read_state(checkpoint, self.state, self.dataset.sha256)
            self.progress.say(f"resuming from {checkpoint}")
        elif initial is not None:
            read_weights(initial, self.state.model, may_lack=adapter_weights(self.state.model))
            self.progress.say(f"starting from the weights of {initial}")
        self.run.truncate_metrics(self.state.step)
        self._saved_step = self.state.step
        self._seconds_before = self.state.seconds
        if self.state.step < self.trainer.num_steps:
            self.tracking.start(self.run, self.state.step)
        self.meter.restart()
        self.progress.start(self.state.step)

    def batches(self) -> Iterator[list[Batch]]:
        """The micro-batches of each step that is left, made in the background."""
        steps = range(self.state.step + 1, self.trainer.num_steps + 1)
        return self.meter.waiting(prefetched(self._load, steps))

    def begin(self, batches: list[Batch]) -> None:
        """Takes the first step of the run, in which parts that do not fit each other are found out.

        Raises:
            RunError: They do not.
        """
        try:
            self.advance(batches)
        except ValueError as error:
            raise RunError(f"the first step cannot be taken: {error}") from error

    def advance(self, batches: list[Batch]) -> None:
        """Takes a step; measures, logs and saves where it is time to."""
        trainer, step = self.trainer, self.state.step + 1
        self.windows.before(step)
        torch.manual_seed(derive_seed(trainer.seed, "dropout", step))
        for name, module in self._drawing:
            module.draw(torch.Generator().manual_seed(derive_seed(trainer.seed, "draw", name, step)))
        set_learning_rate(self.state.optimizer, trainer.learning_rate(step))
        result = train_step(self.state, batches, trainer.precision, trainer.max_grad_norm, self.device, self.teacher)
        self.meter.count(batches)
        self.progress.advance(step)
        is_validated = trainer.validation is not None and trainer.validation.is_due(step, trainer.num_steps)
        if is_validated or trainer.is_logged(step):
            self._require_finite()
            record = self._measured(result)
            if is_validated:
                record |= self._validated()
            self.run.append_metrics(record)
            self.progress.report(record)
            self.tracking.log(record)
        if self.windows.after(step):
            self.meter.restart()
        if trainer.checkpoints.is_due(step, trainer.num_steps):
            self.save()

    def save(self) -> None:
        """Writes a checkpoint, unless there is one of this step.

        Raises:
            RunFailure: The state is not worth keeping, or the disk takes no more.
        """
        if self._saved_step == self.state.step:
            return
        self._require_finite()
        self.state.seconds = self._seconds()
        self.run.flush_metrics()
        self.trainer.checkpoints.save(
            self.run.checkpoints, self.state, self.dataset.sha256, self.run.operative_config()
        )
        self._saved_step = self.state.step
        self.meter.restart()

    def finish(self) -> None:
        """Saves where the run stands and says so."""
        self.save()
        self.progress.close()
        step, num_steps = self.state.step, self.trainer.num_steps
        if step >= num_steps:
            self.progress.say(f"trained to step {step}: {self.run.path}")
        else:
            self.progress.say(
                f"stopped after step {step} of {num_steps} and saved; the same command with --run_dir={self.run.path} "
                "goes on from there"
            )

    def _load(self, step: int) -> list[Batch]:
        batches = self.trainer.batches(self.dataset, step)
        return [batch.pinned() for batch in batches] if self.device.type == "cuda" else batches

    def _measured(self, result: StepResult) -> dict[str, Any]:
        """The record of the step just taken; reading the loss waits for the device."""
        loss, grad_norm = result.loss.item(), result.grad_norm.item()
        return {
            "step": self.state.step,
            "tokens": self.state.tokens,
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": self.trainer.learning_rate(self.state.step),
            **self.meter.read(),
            "seconds": self._seconds(),
            **{name: part.item() for name, part in result.parts.items()},
            **self._routers(result),
            **(self.trainer.norms.measure(self.state, result.grad_norms) if self.trainer.norms else {}),
        }

    def _routers(self, result: StepResult) -> dict[str, Any]:
        """How evenly each router spread its tokens in the step just taken."""
        if not result.loads:
            return {}
        return {"routers": {self._router_names[router]: spread(load) for router, load in result.loads.items()}}

    def _validated(self) -> dict[str, float]:
        trainer = self.trainer
        result = trainer.validation.measure(
            self.state.model, self.dataset, trainer.micro_batch_size, trainer.precision, self.device
        )
        self.meter.restart()
        return {"validation_loss": result.loss, "validation_bits_per_byte": result.bits_per_byte}

    def _require_finite(self) -> None:
        step = self.state.first_nonfinite_step.item()
        if step:
            kept = f"checkpoints/step_{self._saved_step} is from before it" if self._saved_step else "nothing was saved"
            raise RunFailure(
                f"the loss or its gradient is not finite since step {step}, and training stopped; {kept}. "
                "Try a lower AdamW.learning_rate, more warmup_steps or a lower Trainer.max_grad_norm"
            )

    def _seconds(self) -> float:
        """What the run has taken so far, in all of its processes."""
        return self._seconds_before + time.monotonic() - self._begun
