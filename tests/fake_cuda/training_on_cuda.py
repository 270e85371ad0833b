"""A run on a CUDA device without values."""

import contextlib
import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ml.data import Batch
from ml.distributed import Layout, World
from ml.models import materialize
from ml.training import RunFolder, Trainer
from ml.training.guide import Guide
from ml.training.loop import Agreement, TrainLoop
from ml.training.metrics.progress import NoProgress
from ml.training.profiling.step_windows import StepWindows
from ml.training.run_data import RunData
from ml.training.signals import Requests
from ml.training.trackers import Tracking

CUDA = torch.device("cuda", 0)
# Functions that may synchronize, in a step that logs, validates or saves.
OF_LOGGING = frozenset(
    (
        "training/loop.py: TrainLoop._require_finite",
        "training/optimizers/skip_step.py: SpikeGuard.problem",
        "training/records.py: Records.of",
        "training/records.py: Records.of.<locals>.<dictcomp>",
        "training/metrics/norms.py: Norms.measure",
        "training/metrics/router_load.py: load_balance",
        "training/evaluation/validation.py: Validation.measure",
    )
)
# Functions that draw a text sample, after a step.
OF_SAMPLES = frozenset(
    (
        *("models/generation.py: _generate", "models/generation.py: _Texts.__init__"),
        *("models/generation.py: _uniform_numbers", "models/sampling.py: _nucleus_of_all"),
        "training/evaluation/continuations.py: continue_texts",
    )
)


def run_on_cuda(trainer: Trainer, folder: Path, cuda: Callable, logs: Sequence[bool]) -> None:
    """Takes steps of a run; only those that log or sample may synchronize, and the first of them saves.

    Args:
        trainer: The trainer.
        folder: The folder of the run.
        cuda: The context of the check.
        logs: Whether each step logs.
    """
    data = trainer.open_data()
    steps = [trainer.batches(data.training, step + 1) for step in range(len(logs))]
    allowed: frozenset[str] | None = None  # everywhere, until the run is ready
    with cuda(lambda place: allowed is None or place in allowed):
        loop = loop_on_cuda(trainer, data, RunFolder(folder))
        with contextlib.closing(loop.saver):
            for number, (batches, is_logged) in enumerate(zip(steps, logs, strict=True)):
                allowed = OF_LOGGING | OF_SAMPLES if is_logged else frozenset()
                advance(loop, batches, save=number == 0 and is_logged)
            loop.saver.wait()


def loop_on_cuda(trainer: Trainer, data: RunData, run: RunFolder) -> TrainLoop:
    """Returns a run in progress before its first step."""
    run.create()
    layout, progress = Layout(World(device=CUDA)), NoProgress()
    tracking, windows = Tracking((), progress.say), StepWindows((), run.profiles, CUDA, progress.say)
    return TrainLoop(trainer, data, run, layout, guide_of(trainer), progress, Requests(), tracking, windows)


def guide_of(trainer: Trainer) -> Guide | None:
    """The frozen model beside that of the run, of the same shape; for preferences, the run's without its adapters."""
    if trainer.preference is not None:
        return trainer.preference.compare(trainer.model, trainer.sequence_length, None)
    if trainer.distillation is None:
        return None
    teacher = materialize(copy.deepcopy(trainer.model), CUDA)
    return trainer.distillation.teach(trainer.model, trainer.sequence_length, teacher)


def advance(loop: TrainLoop, batches: Sequence[Batch], save: bool) -> None:
    """Takes the next step of a run on batches that are on the host."""
    ready = [batch.ready_for(CUDA) for batch in batches]
    num_targets = sum(batch.num_targets for batch in batches)
    num_units = num_targets if loop.teacher is None else sum(map(loop.teacher.num_units, batches))
    counts = (num_targets, sum(batch.tokens.numel() for batch in batches), num_units)
    take = loop.advance if loop.state.step else loop.begin
    take(ready, Agreement(*counts, stop=False, save=save))
