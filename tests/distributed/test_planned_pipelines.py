"""Plans of pipelines against steps of real processes, orders of torch's schedules and formulas of the papers."""

import functools

import pytest
import torch
from counted_steps import counted, trainer_of
from processes import run_ranks

from ml.distributed import MeshSizes
from ml.distributed.estimate.in_flight import bubble, orders_of, peak_in_flight
from ml.distributed.schedules import (
    GPipe,
    InterleavedOneForwardOneBackward,
    InterleavedZeroBubble,
    OneForwardOneBackward,
    ZeroBubbleV,
)
from ml.training.errors import RunError
from ml.training.estimate import plan
from ml.training.estimate.plans import PIPELINE_SEND
from ml.training.estimate.stages import ranks_of_pipeline

CPU = torch.device("cpu")
MODEL = """
decoder/Repeat.num_blocks = 5
LanguageModel.vocab_size = 257
Trainer.batch_size = 12
Trainer.sequence_length = 16
Cluster.device = 'cpu'
Mesh.pipeline = 2
"""
TWO, SHARDED, DIVIDED = MeshSizes(pipeline=2), MeshSizes(pipeline=2, data_shard=2), MeshSizes(pipeline=2, tensor=2)
CASES = {
    "1F1B": (TWO, "Trainer.micro_batch_size = 3"),
    "tied": (TWO, "Trainer.micro_batch_size = 3\nLanguageModel.tie_word_embeddings = True"),
    "two streams": (TWO, "Trainer.micro_batch_size = 3\nLanguageModel.multi_token = @MultiTokenPrediction"),
    "half": (TWO, "Trainer.micro_batch_size = 3\nTrainer.precision = @PureBFloat16"),
    "GPipe": (TWO, "Trainer.micro_batch_size = 4\nMesh.schedule = @GPipe"),
    "interleaved": (TWO, "Trainer.micro_batch_size = 3\nMesh.schedule = @InterleavedOneForwardOneBackward"),
    "zero bubble": (TWO, "Trainer.micro_batch_size = 3\nMesh.schedule = @ZeroBubbleV"),
}
SHARDED_CASES = {
    "sharded": (SHARDED, "Trainer.micro_batch_size = 1"),
    "sharded, GPipe": (SHARDED, "Trainer.micro_batch_size = 1\nMesh.schedule = @GPipe"),
    "kept gathered": (SHARDED, "Trainer.micro_batch_size = 2\nFullyShard.reshard_after_forward = False"),
    "interleaved, sharded": (
        SHARDED,
        "Trainer.micro_batch_size = 1\nMesh.schedule = @InterleavedOneForwardOneBackward",
    ),
    "tensor": (DIVIDED, "Trainer.micro_batch_size = 3"),
}


@pytest.fixture(scope="module")
def of_two():
    return run_ranks(2, counted, MODEL, CASES)


@pytest.fixture(scope="module")
def of_four():
    return run_ranks(4, counted, MODEL, SHARDED_CASES)


@functools.cache
def planned_ranks(sizes, bindings):
    trainer = trainer_of(MODEL + bindings)
    num_micro_batches = trainer.batch_size // sizes.num_data_ranks // trainer.micro_batch_size
    return ranks_of_pipeline(trainer, sizes, num_micro_batches, trainer.cluster)


def require_plan_of(name, case, coordinate, measured):
    planned = planned_ranks(*case)[coordinate]
    payload, calls, events, weights, optimizer = measured[name]
    sends = sum(event == "gloo:send" for event, *_ in events)
    assert sends == planned.work.calls[PIPELINE_SEND]
    assert (planned.memory.weights, planned.memory.optimizer) == (weights, optimizer)
    # Vectors of norms and losses have the entries of all stages, of which the plan knows those of one.
    of_norms = [key for key in {*payload, *planned.work.payload} if key.kind == "all-reduce" and key.axis != "tensor"]
    for key in of_norms:
        payload.pop(key, None)
        calls.pop(key, None)
    assert {key: value for key, value in planned.work.payload.items() if key not in of_norms} == payload
    assert {key: value for key, value in planned.work.calls.items() if key not in of_norms} == calls


@pytest.mark.parametrize("coordinate", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_stages_are_those_of_processes(of_two, name, coordinate):
    require_plan_of(name, CASES[name], coordinate, of_two[coordinate])


@pytest.mark.parametrize("coordinate", [0, 1])
@pytest.mark.parametrize("name", SHARDED_CASES)
def test_stages_on_more_axes_are_those_of_processes(of_four, name, coordinate):
    require_plan_of(name, SHARDED_CASES[name], coordinate, of_four[2 * coordinate])


@pytest.mark.parametrize("num_micro_batches", [8, 16])
@pytest.mark.parametrize(
    ("schedule", "most"),
    [
        (GPipe, lambda rank, count: count),
        (OneForwardOneBackward, lambda rank, count: min(count, 4 - rank)),
        # Narayanan et al. 2021: (v - 1) p + 2 (p - rank - 1) forward passes before the first that a backward follows.
        (InterleavedOneForwardOneBackward, lambda rank, count: min(2 * count, 4 + 2 * (3 - rank) + 1)),
        # Qi et al. 2023: ZB-H1 and ZB-V keep those of p micro-batches on every rank, here each in two stages.
        (InterleavedZeroBubble, lambda rank, count: 8),
        (ZeroBubbleV, lambda rank, count: 8),
    ],
)
def test_micro_batches_in_flight_are_those_of_the_papers(schedule, most, num_micro_batches):
    own = schedule()
    for rank, order in enumerate(orders_of(own, 4, num_micro_batches)):
        stages = dict.fromkeys(own.stages_of(rank, 4), 1)
        assert peak_in_flight(order, stages) == most(rank, num_micro_batches)


def test_activations_of_the_stages_are_those_of_the_whole_model():
    trainer = trainer_of(MODEL + "Trainer.micro_batch_size = 12\nMesh.schedule = @GPipe")
    whole = plan(trainer, MeshSizes(), trainer.cluster).memory
    ranks = ranks_of_pipeline(trainer, TWO, 1, trainer.cluster)
    stream = 4 * 12 * 16 * trainer.model.hidden_size
    assert sum(rank.memory.weights for rank in ranks) == whole.weights
    # Each rank receives one stream, which the whole model keeps once; torch has a buffer for its gradient too.
    assert sum(rank.memory.activations for rank in ranks) == pytest.approx(whole.activations + 2 * stream, abs=stream)


def test_a_plan_has_the_memory_of_the_largest_rank_and_waits_for_the_slowest():
    trainer = trainer_of(MODEL + "Trainer.micro_batch_size = 3")
    planned = plan(trainer, TWO, trainer.cluster)
    ranks = ranks_of_pipeline(trainer, TWO, 4, trainer.cluster)
    assert planned.memory in [rank.memory for rank in ranks]
    assert planned.stages == next(rank.stages for rank in ranks if rank.memory == planned.memory)
    # One of four micro-batches more on two ranks; the optimizer does not wait.
    slowest = max(ranks, key=lambda rank: rank.work.seconds)
    assert 0.5 * slowest.work.seconds / 4 < planned.bubble_seconds < 1.01 * slowest.work.seconds / 4
    assert planned.step_seconds == planned.work.seconds + planned.exposed_seconds + planned.bubble_seconds


def test_a_tied_weight_of_one_rank_is_not_planned():
    trainer = trainer_of(MODEL + "Mesh.schedule = @ZeroBubbleV\nLanguageModel.tie_word_embeddings = True")
    with pytest.raises(RunError, match="ZeroBubbleV has the first and the last stage on one rank"):
        plan(trainer, TWO, trainer.cluster)


@pytest.mark.parametrize(
    ("schedule", "times"),
    [
        (GPipe, 3.0),
        (OneForwardOneBackward, 3.0),
        (InterleavedOneForwardOneBackward, 1.5),
        (InterleavedZeroBubble, 0.5),
        (ZeroBubbleV, 0.0),
    ],
)
def test_bubbles_of_four_ranks(schedule, times):
    assert bubble(schedule(), 4) == times
