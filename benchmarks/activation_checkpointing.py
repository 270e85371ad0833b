"""Peak memory and step time of the policies of activation checkpointing.

    python benchmarks/activation_checkpointing.py [--rounds=3]

A Llama shape with 30 million parameters, float32: vocabulary 8,192, width 512, 8 blocks, 8 query and 4 key-value heads,
intermediate size 1,408, 2 sequences of 512 tokens. The peak is that of the CPU allocator, next to the estimate of the
dry run. Steps of all policies alternate on one thread; their time is CPU time.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from timing import seconds
from torch.profiler import ProfilerActivity, profile

import ml
from ml.api import build_trainer
from ml.training.estimate import memory_of_step
from ml.training.step import train_step

CPU = torch.device("cpu")
SHAPE = [
    "LanguageModel.vocab_size = 8192",
    "LanguageModel.hidden_size = 512",
    "decoder/Repeat.num_blocks = 8",
    "Attention.num_heads = 8",
    "Attention.num_kv_heads = 4",
    "GatedMLP.intermediate_size = 1408",
    "Trainer.optimizer = @AdamW",
    "Trainer.batch_size = 2",
    "Trainer.sequence_length = 512",
]
ATTENTION = "SelectiveActivationCheckpointing.saved = ('aten._scaled_dot_product_flash_attention_for_cpu',)"
POLICIES = {
    "none": [],
    "half of the blocks": ["block_0_to_3/DecoderBlock.activation_checkpointing = @ActivationCheckpointing"],
    "every block": ["DecoderBlock.activation_checkpointing = @ActivationCheckpointing"],
    "selective: products and attention saved": [
        "DecoderBlock.activation_checkpointing = @SelectiveActivationCheckpointing"
    ],
    "selective: attention saved": [
        "DecoderBlock.activation_checkpointing = @SelectiveActivationCheckpointing",
        ATTENTION,
    ],
}


def step_of(bindings: list[str]) -> tuple[float, Callable[[], object], int]:
    """Returns the estimated peak, a function that takes a step, and the bytes of its state."""
    trainer = build_trainer(ml.load("base.gin", [*SHAPE, *bindings]))
    estimate = memory_of_step(trainer, CPU).peak
    state = trainer.start(CPU)
    batches = trainer.batches(trainer.open_data().training, 1)
    step = partial(train_step, state, batches, trainer.precision, trainer.max_grad_norm, CPU)
    storages = [tensor.untyped_storage() for tensor in (*state.tensors().values(), *state.model.buffers())]
    return estimate, step, sum({one.data_ptr(): one.nbytes() for one in storages}.values())


def peak_of(call: Callable[[], object]) -> int:
    """Returns the highest sum of the bytes that a call allocates on the CPU."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    cases = {name: step_of(bindings) for name, bindings in POLICIES.items()}
    peaks = {name: kept + peak_of(step) for name, (_, step, kept) in cases.items()}
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, (_, step, _) in cases.items():
            times[name].append(seconds(step, time.process_time))
    print(f"{'':<42} {'peak':>9} {'estimate':>9} {'of none':>8} {'step':>8} {'of none':>8}")
    for name, (estimate, _, _) in cases.items():
        ratio = statistics.median(a / b for a, b in zip(times[name], times["none"], strict=True))
        print(
            f"{name:<42} {peaks[name] / 2**20:>5.0f} MiB {estimate / 2**20:>5.0f} MiB "
            f"{peaks[name] / peaks['none']:>8.2f} {statistics.median(times[name]):>6.2f} s {ratio:>8.2f}"
        )


if __name__ == "__main__":
    main()
