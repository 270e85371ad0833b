"""Cost of metrics and trackers: steps of a tiny run (recipes/tiny.gin) with and without, alternating.

python benchmarks/watching.py
"""

import contextlib
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from timing import compare

import ml
from ml.api import build_trainer
from ml.distributed import Layout, World
from ml.training import RunFolder
from ml.training.loop import Agreement, TrainLoop
from ml.training.metrics.progress import progress_on
from ml.training.profiling.step_windows import StepWindows
from ml.training.signals import Requests
from ml.training.trackers import Tracking

CPU = torch.device("cpu")
STEPS, ROUNDS = 10, 60
VARIANTS = {
    "the default": [],
    "TensorBoard": ["Trainer.trackers = [@TensorBoard]"],
    "norms by place": ["Trainer.norms = @Norms"],
    "all of it, each step logged": [
        "Trainer.trackers = [@TensorBoard]",
        "Trainer.norms = @Norms",
        "Trainer.log_every = 1",
    ],
}


class Nothing:
    """Replaces the throughput and measures nothing."""

    def restart(self) -> None:
        pass

    def count(self, batches: list) -> None:
        pass

    def read(self) -> dict:
        return {"tokens_per_second": 0.0}


@contextlib.contextmanager
def begun(folder: Path, bindings: list[str], metered: bool = True) -> Iterator[TrainLoop]:
    """Yields a run before its first step, without validation and checkpoints."""
    rest = [
        "Trainer.validation = None",
        "Checkpoints.every = None",
        "Trainer.num_steps = 100000",
        "Trainer.log_every = 10",
    ]
    trainer = build_trainer(ml.load("recipes/tiny.gin", bindings=[*rest, *bindings]))
    run, progress = RunFolder(folder), progress_on(io.StringIO(), trainer.num_steps)
    run.create()
    windows = StepWindows(trainer.windows, run.profiles, CPU, progress.say)
    with Tracking(trainer.trackers, progress.say) as tracking, windows:
        training = TrainLoop(
            trainer, trainer.open_data(), run, Layout(World(device=CPU)), None, progress, Requests(), tracking, windows
        )
        training.resume()
        if not metered:
            training.throughput = Nothing()
        yield training


def steps(training: TrainLoop, batches: list) -> None:
    """Takes the steps of a round, one of them logged."""
    for step in batches:
        counts = sum(batch.num_targets for batch in step), sum(batch.tokens.numel() for batch in step)
        training.advance(step, Agreement(*counts, stop=False, save=False))


def main() -> None:
    for name, bindings in VARIANTS.items():
        with (
            tempfile.TemporaryDirectory() as folder,
            begun(Path(folder, "without"), [], metered=False) as without,
            begun(Path(folder, "with"), bindings) as watched,
        ):
            trainer, dataset = without.trainer, without.data.training
            batches = [trainer.batches(dataset, step) for step in range(1, STEPS + 1)]
            found = compare(lambda: steps(without, batches), lambda: steps(watched, batches), ROUNDS)  # noqa: B023
            print(f"{name}: {found.first / STEPS * 1e3:.1f} ms a step without, ratio {found.ratio:.3f}")
            if not bindings:
                print(f"  the throughput and the windows alone: {alone(watched, batches[0]):.1f} us a step")


def alone(training: TrainLoop, batches: list, count: int = 20_000) -> float:
    """Returns the microseconds per step of the code that runs in every step, without the step."""
    source = training.throughput.waiting(batches for _ in itertools.repeat(None))
    times = []
    for _ in range(5):
        begun_at = time.perf_counter()
        for step in range(count):
            training.windows.before(step)
            training.throughput.count(*(len(next(source)),) * 2)
            training.windows.after(step)
        times.append((time.perf_counter() - begun_at) / count * 1e6)
    return statistics.median(times)


if __name__ == "__main__":
    main()
