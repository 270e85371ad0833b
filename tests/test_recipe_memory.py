"""The memory that a dry run estimates for each recipe, against the peak of torch's CPU allocator in a real step."""

import gc
import io

import pytest
import torch
from test_recipes import RECIPES, SMALL, load, write_data
from torch.profiler import ProfilerActivity, profile

from ml.api import build_trainer
from ml.distributed import World
from ml.runs import open_teacher
from ml.runs.launch import Launch
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
    "adapters, recomputed": (
        "recipes/lora.gin",
        ["DecoderBlock.activation_checkpointing = @ActivationCheckpointing"],
    ),
    "a larger teacher": ("base.gin", ["Trainer.distillation = @Distillation", "Distillation.teacher = 'frozen'"]),
    "a reference": (
        "recipes/dpo.gin",
        ["LanguageModel.vocab_size = 300", "DirectPreferenceOptimization.reference = 'frozen'"],
    ),
}
# The run `frozen` of those that have one.
FROZEN = {
    "a larger teacher": ["decoder/Repeat.num_blocks = 12"],
    "a reference": [
        "LanguageModel.vocab_size = 300",
        "TextData.tokenizer = @HuggingFaceTokenizer",
        "HuggingFaceTokenizer.path = 'tokenizer.json'",
    ],
}


def peak_of_step(trainer):
    """Returns the bytes of the state and of the highest sum of the allocations in the second step."""
    state, guide = trainer.start(CPU), open_teacher(trainer, CPU)
    dataset = trainer.open_data().training
    for step in (1, 2):
        batches = trainer.batches(dataset, step)
        gc.collect()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            train_step(state, batches, trainer.precision, trainer.max_grad_norm, CPU, guide)
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    frozen = [] if guide is None or guide.model is None else list(guide.model.parameters())
    tensors = (*state.tensors().values(), *state.model.buffers(), *frozen)
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()) + peak


@pytest.mark.parametrize("case", CASES)
def test_the_estimated_memory_of_a_step_is_that_of_the_allocator(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_data([f"{number} and {number + 1}.\n" for number in range(400)])
    recipe, bindings = CASES[case]
    if case in FROZEN:
        train_frozen(FROZEN[case])
    small = [] if case in FROZEN else SMALL[recipe]
    config = load(recipe, [*STEP, *small, *bindings], allow_unused_bindings=True)
    trainer = build_trainer(config)
    guide = open_teacher(trainer, torch.device("meta"))
    estimated = memory_of_step(trainer, CPU).peak + (0 if guide is None else guide.num_bytes)
    # Kernels allocate buffers that no operator returns.
    assert estimated == pytest.approx(peak_of_step(trainer), rel=0.05)


def train_frozen(bindings):
    """Trains the run `frozen` for a step."""
    step = ["Trainer.num_steps = 1", "Trainer.validation = None", "Checkpoints.every = None"]
    config = load("base.gin", [*STEP, *step, *bindings], allow_unused_bindings=True)
    Launch(config, build_trainer(config), "frozen", World()).train(io.StringIO())
