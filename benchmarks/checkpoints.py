"""Training during a checkpoint write, against training without one: python benchmarks/checkpoints.py

Uses the model and the step of `recipes/llama_30m.gin`, without compilation. `blocked` is the time of the call that
saves. `held back` is the slowdown of two steps that follow a save: on a CPU the writer thread competes with the step
for cores. Each round measures both; results are medians over all rounds, as fractions of a step.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

import ml
from ml.api import build_trainer
from ml.training.checkpoints.state_files import snapshot
from ml.training.step import train_step

STEPS = 2  # after each save; the write ends before they do


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=32)
    arguments = parser.parse_args()
    bindings = ["Trainer.compile = False", f"Trainer.batch_size = {arguments.batch_size}"]
    trainer = build_trainer(ml.load("recipes/llama_30m.gin", bindings))
    device, dataset = torch.device("cpu"), trainer.open_data().training
    state = trainer.start(device)
    batches = trainer.batches(dataset, 1)

    def steps() -> float:
        begun = time.perf_counter()
        for _ in range(STEPS):
            train_step(state, batches, trainer.precision, trainer.max_grad_norm, device)
        return time.perf_counter() - begun

    def blocked() -> float:
        begun = time.perf_counter()
        saver.save(snapshot(state, dataset.sha256, ""))
        return time.perf_counter() - begun

    with tempfile.TemporaryDirectory() as folder:
        saver = trainer.checkpoints.open(Path(folder), lambda: None)
        steps()
        blocked()  # allocates the host copy
        saver.wait()
        rounds = []
        for _ in range(arguments.rounds):
            alone = steps()
            call = blocked()
            beside = call + steps()
            begun = time.perf_counter()
            saver.wait()
            step = alone / STEPS
            rounds.append((step, call / step, (beside - alone) / step, (time.perf_counter() - begun) / step))
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        saver.close()
    step, call, held, left = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"checkpoints on disk: {size / 2**20:,.0f} MiB; a step: {step:.2f} s")
    print(f"blocked {call:.1%} of a step, held back {held:.1%}, still writing {left:.1%} of a step after {STEPS} steps")


if __name__ == "__main__":
    main()
