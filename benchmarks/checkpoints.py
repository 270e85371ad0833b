"""Training while a checkpoint is written, against training while none is: python benchmarks/checkpoints.py

The model and the step of `recipes/llama_30m.gin`, without compilation. `blocked` is how long the call to save takes,
`held back` how much longer two steps take when a save begins before them: on a CPU the thread that writes also takes
processor time from the step. Each round measures both in turn; medians of all rounds, in parts of a step.
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

STEPS = 2  # after each save; the write is over before they are


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
        blocked()  # the memory of the copy is taken once
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
    print(f"a checkpoint and what was kept before it: {size / 2**20:,.0f} MiB; a step: {step:.2f} s")
    print(f"blocked {call:.1%} of a step, held back {held:.1%}, still writing {left:.1%} of a step after {STEPS} steps")


if __name__ == "__main__":
    main()
