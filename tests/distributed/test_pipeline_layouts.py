"""Pipelines together with the other axes of a mesh: three training steps as in one process."""

import pytest
import torch
from laid_out import whole
from pipeline_cases import (
    FURTHER_TOKENS,
    LEARNED_POSITIONS,
    MIXTURE,
    PATTERN,
    SIGMOID,
    TIED,
    micro_batches,
    require_equal,
    trainer_of,
)
from processes import run_ranks

import ml
from ml.distributed import Layout
from ml.training.errors import RunError
from ml.training.state import named_weights
from ml.training.step import train_step

CPU = torch.device("cpu")
GATHERED = ["FullyShard.reshard_after_forward = False"]
CASES = {
    "data": [*TIED, *LEARNED_POSITIONS, "Mesh.data_shard = 2"],
    "data, interleaved": [
        *SIGMOID,
        "Trainer.skip_step = @SkipStep",
        "Mesh.data_shard = 2",
        "Mesh.schedule = @InterleavedOneForwardOneBackward",
        *GATHERED,
    ],
    "data, zero bubble": [*MIXTURE, "Mesh.data_shard = 2", "Mesh.schedule = @InterleavedZeroBubble", *GATHERED],
    "data, zero bubble v": ["Mesh.data_shard = 2", "Mesh.schedule = @ZeroBubbleV", *GATHERED],
    "data, bfloat16": ["Mesh.data_shard = 2", "Trainer.precision = @MixedBFloat16"],
    "replicas": [*FURTHER_TOKENS, "Mesh.data_replicate = 2", "Mesh.data_shard = 1"],
    "experts": [*MIXTURE, "Mesh.data_shard = 2", "Mesh.expert = 2", "Mesh.schedule = @GPipe"],
    "tensor": [*MIXTURE, "Mesh.tensor = 2"],
    "tensor, tied": [*TIED, *LEARNED_POSITIONS, "Mesh.tensor = 2", "Mesh.schedule = @InterleavedOneForwardOneBackward"],
    "tensor, zero bubble": [*TIED, "Mesh.tensor = 2", "Mesh.schedule = @InterleavedZeroBubble"],
    "context": [*PATTERN, *TIED, "Mesh.context = 2"],
    "context, interleaved": [*SIGMOID, "Mesh.context = 2", "Mesh.schedule = @InterleavedOneForwardOneBackward"],
    "context, further tokens": [*FURTHER_TOKENS, "Mesh.context = 2"],
}

OF_EIGHT = {
    "data, tensor": [
        *TIED,
        *MIXTURE,
        "Mesh.data_shard = 2",
        "Mesh.tensor = 2",
        "Mesh.schedule = @InterleavedOneForwardOneBackward",
        *GATHERED,
    ],
    "data, context": [*PATTERN, "Mesh.data_replicate = 2", "Mesh.data_shard = 1", "Mesh.context = 2"],
}


def step_of(trainer, state, step):
    layout = state.layout
    batches, num_targets = micro_batches(step, layout.data_rank, layout.num_data_ranks)
    return train_step(state, batches, trainer.precision, 0.5, CPU, num_targets=num_targets)


@torch.no_grad()
def validation_loss(state):
    state.model.eval()
    batches, num_targets = micro_batches(100, state.layout.data_rank, state.layout.num_data_ranks)
    nats = sum(state.model.loss(**batch.inputs).cross_entropy for batch in batches)
    state.model.train()
    return state.layout.sum(nats / num_targets)


def require_equal_sums(found, wanted, name):
    tolerance = 2e-6
    require_equal(found.loss, wanted.loss, f"{name}: loss", tolerance)
    require_equal(found.grad_norm, wanted.grad_norm, f"{name}: norm", 1e-5)
    assert found.parts.keys() == wanted.parts.keys(), name
    for part, value in found.parts.items():
        require_equal(value, wanted.parts[part], f"{name}: {part}", tolerance)
    assert found.loads.keys() == wanted.loads.keys(), name
    for router, load in found.loads.items():
        assert load.tolist() == wanted.loads[router].tolist(), f"{name}: {router}"


def of_one_process(trainer):
    """The sums of three steps, the weights after them and the validation loss."""
    state = trainer.start(CPU)
    sums = [step_of(trainer, state, step) for step in range(3)]
    return sums, {key: weight.detach() for key, weight in named_weights(state.model).items()}, validation_loss(state)


def trains_as_one_process(world, name):
    trainer = trainer_of([*(CASES | OF_EIGHT)[name], "Mesh.pipeline = 2"])
    wanted, weights, wanted_validation_loss = world.first(lambda: of_one_process(trainer))
    state = trainer.start(CPU, Layout.of(world, trainer.mesh_sizes(world.size)))
    for step in range(3):
        require_equal_sums(step_of(trainer, state, step), wanted[step], f"{name}, step {step}")
    for key, weight in named_weights(state.model).items():
        require_equal(whole(weight), weights[key], f"{name}: {key}", 1e-5)
    require_equal(validation_loss(state), wanted_validation_loss, f"{name}: validation loss", 2e-6)


def all_train(world, names):
    for name in names:
        trains_as_one_process(world, name)


@pytest.mark.parametrize(("num_ranks", "cases"), [(4, CASES), (8, OF_EIGHT)], ids=["4 ranks", "8 ranks"])
def test_a_pipeline_on_any_mesh_trains_as_one_process(num_ranks, cases):
    run_ranks(num_ranks, all_train, list(cases), timeout=480.0)


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        (
            ["Mesh.data_shard = 2", "Mesh.schedule = @ZeroBubbleV"],
            "ZeroBubbleV computes gradients of weights by themselves: FullyShard.reshard_after_forward must be False",
        ),
        (
            ["Mesh.context = 2", "Mesh.schedule = @InterleavedZeroBubble", *GATHERED],
            r"InterleavedZeroBubble computes gradients of weights by themselves: Mesh.context \(2\) must be 1",
        ),
        (
            [*TIED, "Mesh.data_shard = 2", "Mesh.schedule = @ZeroBubbleV", *GATHERED],
            "ZeroBubbleV has the first and the last stage on one rank, where LanguageModel.tie_word_embeddings",
        ),
        (
            ["Mesh.tensor = 2", "Mesh.schedule = @ZeroBubbleV", "Trainer.compile = True"],
            "ZeroBubbleV does not work with compiled blocks: Trainer.compile must be False",
        ),
        (
            ["Mesh.data_shard = 2", "Trainer.micro_batch_size = 4"],
            r"OneForwardOneBackward needs at least as many micro-batches as Mesh.pipeline \(2\), not 1; see",
        ),
        (["Mesh.tensor = 2", "Trainer.samples = @Samples"], r"Trainer.samples .*Mesh.pipeline \(2\) must be 1"),
        (["Mesh.pipeline = 4", "Mesh.schedule = @ZeroBubbleV"], "4 blocks cannot be divided into 8 stages"),
    ],
)
def test_a_pipeline_that_does_not_fit_is_refused_by_name(bindings, message):
    pipeline = [] if "Mesh.pipeline = 4" in bindings else ["Mesh.pipeline = 2"]
    with pytest.raises(RunError, match=message):
        trainer_of([*pipeline, *bindings]).mesh_sizes(4)


def test_a_schedule_without_a_pipeline_is_refused():
    with pytest.raises(ml.ConfigError, match=r"Mesh.schedule has no effect where Mesh.pipeline = 1"):
        ml.load("base.gin", bindings=["Mesh.schedule = @GPipe"])
