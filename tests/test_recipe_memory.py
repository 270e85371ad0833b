"""The memory that a dry run estimates for each recipe, against the peak of torch's CPU allocator in a real step."""

import gc

import pytest
import torch
from test_recipes import RECIPES, SMALL, load, write_data
from torch.profiler import ProfilerActivity, profile

from ml.api import build_trainer
from ml.training.estimate import memory_of_step
from ml.training.step import train_step

CPU = torch.device("cpu")
# Two micro-batches; activations are a large part of the memory, as in the runs of the recipes.
STEP = [
    "Trainer.num_steps = 3", "Trainer.batch_size = 8", "Trainer.micro_batch_size = 4", "Trainer.sequence_length = 64",
    "Trainer.compile = False", "CosineSchedule.warmup_steps = 1", "TextFiles.paths = 'text.txt'",
]  # fmt: skip
CASES = {
    **{recipe: (recipe, []) for recipe in RECIPES},
    "one micro-batch": ("base.gin", ["Trainer.micro_batch_size = 8"]),
    "recomputed": ("base.gin", ["DecoderBlock.activation_checkpointing = @ActivationCheckpointing"]),
    "partly recomputed": (
        "base.gin",
        ["block_0_to_1/DecoderBlock.activation_checkpointing = @SelectiveActivationCheckpointing"],
    ),
}


def peak_of_step(trainer):
    """Returns the bytes of the state and of the highest sum of the allocations in the second step."""
    state = trainer.start(CPU)
    dataset = trainer.open_data().training
    for step in (1, 2):
        batches = trainer.batches(dataset, step)
        gc.collect()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            train_step(state, batches, trainer.precision, trainer.max_grad_norm, CPU)
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    storages = [tensor.untyped_storage() for tensor in (*state.tensors().values(), *state.model.buffers())]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()) + peak


@pytest.mark.parametrize("case", CASES)
def test_the_estimated_memory_of_a_step_is_that_of_the_allocator(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_data([f"{number} and {number + 1}.\n" for number in range(400)])
    recipe, bindings = CASES[case]
    config = load(recipe, [*STEP, *SMALL[recipe], *bindings], allow_unused_bindings=True)
    trainer = build_trainer(config)
    estimated = memory_of_step(trainer, CPU)
    # Kernels allocate buffers that no operator returns.
    assert estimated.peak == pytest.approx(peak_of_step(trainer), rel=0.05)
