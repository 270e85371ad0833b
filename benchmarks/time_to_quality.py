"""Time of training to a validation loss, in bits per byte: recipes of Juniper and a handwritten model.

The contenders have one shape, initial weights, batches and schedule, that of base.gin. They step in turn in one
process, so that a drift in the speed of the machine affects all of them. Validation is not timed.

    python benchmarks/time_to_quality.py [TEXT] --targets 2.6 2.4 2.2
    python benchmarks/time_to_quality.py TEXT --cpu_time --csv=curve.csv
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from handwritten_llama import Llama
from llama_steps import weights_in_order
from torch import nn

import ml
from ml.api import build_trainer
from ml.data import Batch
from ml.training import Trainer
from ml.training.host_memory import keep_freed_pages
from ml.training.optimizers import apply_schedule
from ml.training.run_data import RunData
from ml.training.step import train_step

CPU = torch.device("cpu")
ADAMW = ("Trainer.optimizer = @AdamW",)
RECIPES = {"base.gin (Muon and AdamW)": (), "base.gin with AdamW": ADAMW}
HANDWRITTEN = "handwritten, AdamW"


class Contender(Protocol):
    """A model in training."""

    def step(self, number: int, batches: list[Batch]) -> None:
        """Takes a training step."""

    def bits_per_byte(self) -> float:
        """Measures the held-out text."""


class Juniper:
    """A run of Juniper."""

    def __init__(self, trainer: Trainer, data: RunData):
        self.trainer, self.data = trainer, data
        self.state = trainer.start(CPU)

    def step(self, number: int, batches: list[Batch]) -> None:
        apply_schedule(self.state.optimizer, self.trainer.schedule(number))
        train_step(self.state, batches, self.trainer.precision, self.trainer.max_grad_norm, CPU)

    def bits_per_byte(self) -> float:
        (held_out,) = self.data.validation_sets
        where = (self.trainer.micro_batch_size, self.trainer.precision, CPU)
        return held_out.validation.measure(self.state.model, held_out.dataset, *where).bits_per_byte


class Handwritten:
    """The handwritten model, with torch's fused AdamW and the settings of base.gin."""

    def __init__(self, trainer: Trainer, data: RunData):
        self.trainer, self.data = trainer, data
        source = trainer.start(CPU).model
        attention, mlp = source.decoder.blocks[0].mixer, source.decoder.blocks[0].mlp
        sizes = (source.vocab_size, source.hidden_size, len(source.decoder.blocks))
        heads = (attention.num_heads, attention.num_kv_heads, mlp.down.in_features)
        self.model = Llama(*sizes, *heads, trainer.sequence_length)
        with torch.no_grad():
            for mine, weight in zip(weights_in_order(self.model), weights_in_order(source), strict=True):
                mine.copy_(weight)
        matrices = [weight for weight in self.model.parameters() if weight.ndim > 1]
        vectors = [weight for weight in self.model.parameters() if weight.ndim < 2]
        settings = trainer.optimizer
        groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, settings.learning_rate, settings.betas, fused=True)

    def step(self, number: int, batches: list[Batch]) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.trainer.optimizer.learning_rate * self.trainer.schedule(number)
        (batch,) = batches
        self.model(batch.tokens, batch.targets).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.trainer.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def bits_per_byte(self) -> float:
        (held_out,) = self.data.validation_sets
        num_tokens, nats = held_out.validation.num_tokens, 0.0
        for batch in held_out.dataset.validation_part(self.trainer.micro_batch_size, num_tokens):
            nats += self.model(batch.tokens, batch.targets).item() * batch.num_targets
        return nats / math.log(2) / held_out.dataset.validation_bytes(num_tokens)


class Point(NamedTuple):
    """A validation: seconds of training before it, and its result."""

    seconds: float
    bits_per_byte: float


def curves(contenders: dict[str, Contender], every: int, clock: Callable[[], float]) -> dict[str, list[Point]]:
    """Trains all contenders in turn; measures each every `every` steps and at the end, and prints so."""
    some = next(one for one in contenders.values() if isinstance(one, Juniper))
    spent, found = dict.fromkeys(contenders, 0.0), {name: [] for name in contenders}
    for number in range(1, some.trainer.num_steps + 1):
        batches = some.trainer.batches(some.data.training, number)
        for name, contender in contenders.items():
            begun = clock()
            contender.step(number, batches)
            spent[name] += clock() - begun
            if number % every == 0 or number == some.trainer.num_steps:
                found[name].append(Point(spent[name], contender.bits_per_byte()))
                point = found[name][-1]
                print(f"step {number:<5} {name:<28} {point.seconds:7.1f} s {point.bits_per_byte:.4f}", flush=True)
    return found


def time_to(points: list[Point], target: float) -> float | None:
    """Seconds until the first validation at or below a target; None if there is none."""
    return next((point.seconds for point in points if point.bits_per_byte <= target), None)


def report(found: dict[str, list[Point]], targets: list[float]) -> None:
    """Prints the seconds to each target, and their ratio to those of the handwritten model."""
    for name, points in found.items():
        cells = [f"{points[-1].bits_per_byte:.3f} bits per byte after {points[-1].seconds:.1f} s"]
        for target in targets:
            taken, other = time_to(points, target), time_to(found[HANDWRITTEN], target)
            ratio = "" if taken is None or other is None else f" (ratio {other / taken:.2f})"
            cells.append(f"{target}: " + ("not reached" if taken is None else f"{taken:.1f} s{ratio}"))
        print(f"{name:<28} {'; '.join(cells)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="?", help="a text file (default: the standard library of Python)")
    parser.add_argument("--targets", type=float, nargs="+", default=[3.0, 2.6, 2.4, 2.2], help="bits per byte")
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--every", type=int, default=15, help="steps between two validations")
    parser.add_argument("--cpu_time", action="store_true", help="CPU time of one thread, for a machine with other load")
    parser.add_argument("--csv", type=Path, help="where to write the curves")
    arguments = parser.parse_args()
    clock = time.perf_counter
    if arguments.cpu_time:
        torch.set_num_threads(1)
        clock = time.thread_time
    keep_freed_pages()
    corpus = [] if arguments.text is None else [f"TextFiles.paths = {arguments.text!r}"]
    steps = [f"Trainer.num_steps = {arguments.steps}", f"CosineSchedule.warmup_steps = {min(40, arguments.steps // 4)}"]
    bindings = [*corpus, *steps, "Validation.num_tokens = 32768"]
    contenders: dict[str, Contender] = {}
    for name, further in RECIPES.items():
        trainer = build_trainer(ml.load("base.gin", [*bindings, *further]))
        contenders[name] = Juniper(trainer, trainer.open_data())
    trainer = build_trainer(ml.load("base.gin", [*bindings, *ADAMW]))
    contenders[HANDWRITTEN] = Handwritten(trainer, trainer.open_data())
    found = curves(contenders, arguments.every, clock)
    if arguments.csv is not None:
        rows = (f"{name},{point.seconds:.3f},{point.bits_per_byte:.4f}" for name, row in found.items() for point in row)
        arguments.csv.write_text("\n".join(["contender,seconds,bits_per_byte", *rows, ""]))
    report(found, arguments.targets)


if __name__ == "__main__":
    main()
