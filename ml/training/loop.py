"""Training from the first step, or from the newest checkpoint, to the last."""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch

from ml.data import Batch, DataError, Dataset
from ml.data.prefetch import prefetched
from ml.data.randomness import derive_seed
from ml.models.adapters import adapter_weights
from ml.training.checkpoints import newest_checkpoint
from ml.training.errors import RunError, RunFailure
from ml.training.optimizers import set_learning_rate
from ml.training.progress import Progress, progress_on
from ml.training.router_load import spread
from ml.training.run_folder import RunFolder
from ml.training.signals import stop_on_signals
from ml.training.state_files import read_state, read_weights
from ml.training.step import StepResult, train_step
from ml.training.trainer import Trainer


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
        RunError: The folder or the initial weights do not fit the run.
        DataError: The first batch cannot be made.
        RunFailure: The loss is not finite, the disk takes no more, or the data is not there any more. Checkpoints that
            were there still are.
    """
    run.create()
    progress = progress_on(stream, trainer.num_steps)
    with stop_on_signals() as stop, contextlib.closing(progress):
        training = Training(trainer, dataset, run, device, progress)
        training.resume(initial)
        with training.reading_data(), contextlib.closing(training.batches()) as steps:
            for batches in steps:
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

    def __init__(self, trainer: Trainer, dataset: Dataset, run: RunFolder, device: torch.device, progress: Progress):
        self.trainer = trainer
        self.dataset = dataset
        self.run = run
        self.device = device
        self.progress = progress
        self.teacher = trainer.open_teacher(device)
        self.state = trainer.start(device)
        self._router_names = {module: name for name, module in self.state.model.named_modules()}
        self._drawing = [(name, m) for name, m in self.state.model.named_modules() if hasattr(m, "draw")]
        self._saved_step = 0
        self._begun = time.monotonic()
        self._seconds_before = 0.0
        self._lap()

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
        self._lap()
        self.progress.start(self.state.step)

    def batches(self) -> Iterator[list[Batch]]:
        """The micro-batches of each step that is left, made in the background."""
        steps = range(self.state.step + 1, self.trainer.num_steps + 1)
        return prefetched(self._load, steps, self.trainer.num_loader_workers)

    @contextlib.contextmanager
    def reading_data(self) -> Iterator[None]:
        """Tells data that cannot be used from the start from data that was lost or damaged on the way.

        Raises:
            DataError: The batches of the first step that this process takes cannot be made.
            RunFailure: Those of a later one cannot, or the held-out text cannot be read.
        """
        first = self.state.step
        try:
            yield
        except DataError as error:
            if self.state.step == first:
                raise
            raise RunFailure(
                f"the data cannot be read after step {self.state.step}, and training stopped; {self._kept()}. {error}"
            ) from error

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
        torch.manual_seed(derive_seed(trainer.seed, "dropout", step))
        for name, module in self._drawing:
            module.draw(torch.Generator().manual_seed(derive_seed(trainer.seed, "draw", name, step)))
        set_learning_rate(self.state.optimizer, trainer.learning_rate(step))
        result = train_step(self.state, batches, trainer.precision, trainer.max_grad_norm, self.device, self.teacher)
        self.progress.advance(step)
        is_validated = trainer.validation is not None and trainer.validation.is_due(step, trainer.num_steps)
        if is_validated or trainer.is_logged(step):
            self._require_finite()
            record = self._measured(result)
            if is_validated:
                record |= self._validated()
            self.run.append_metrics(record)
            self.progress.report(record)
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
        self._lap()

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
        rate = (self.state.tokens - self._lap_tokens) / (time.monotonic() - self._lap_begun)
        self._lap()
        return {
            "step": self.state.step,
            "tokens": self.state.tokens,
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": self.trainer.learning_rate(self.state.step),
            "tokens_per_second": rate,
            "seconds": self._seconds(),
            **{name: part.item() for name, part in result.parts.items()},
            **self._routers(result),
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
        self._lap()
        return {"validation_loss": result.loss, "validation_bits_per_byte": result.bits_per_byte}

    def _require_finite(self) -> None:
        step = self.state.first_nonfinite_step.item()
        if step:
            raise RunFailure(
                f"the loss or its gradient is not finite since step {step}, and training stopped; {self._kept()}. "
                "Try a lower AdamW.learning_rate, more warmup_steps or a lower Trainer.max_grad_norm"
            )

    def _kept(self) -> str:
        return f"checkpoints/step_{self._saved_step} is from before it" if self._saved_step else "nothing was saved"

    def _seconds(self) -> float:
        """What the run has taken so far, in all of its processes."""
        return self._seconds_before + time.monotonic() - self._begun

    def _lap(self) -> None:
        """Begins to measure the speed from here, so that it leaves out validation and saving."""
        self._lap_begun = time.monotonic()
        self._lap_tokens = self.state.tokens
