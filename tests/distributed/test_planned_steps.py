"""Plans against steps of real processes: bytes by axis, and the shards of weights and optimizer state."""

from collections import Counter
from math import prod

import pytest
import torch
from counted_steps import counted, trainer_of
from processes import run_ranks

from ml.distributed import MeshSizes
from ml.training.estimate import plan

CPU = torch.device("cpu")
# Three equal blocks, of which the plan traces two, and three micro-batches, of which it traces two. Sizes that the
# ranks do not divide: 5 rows of 3 heads.
MODEL = """
decoder/Repeat.num_blocks = 3
LanguageModel.vocab_size = 257
Trainer.batch_size = 12
Trainer.sequence_length = 16
Cluster.device = 'cpu'
"""
CASES = {
    "fsdp": (MeshSizes(data_shard=2), "Trainer.micro_batch_size = 2"),
    "kept gathered": (
        MeshSizes(data_shard=2),
        "Trainer.micro_batch_size = 2\nFullyShard.reshard_after_forward = False\nAdamW.weight_decay = 0.0",
    ),
    "half": (MeshSizes(data_shard=2), "Trainer.micro_batch_size = 2\nFullyShard.gather_dtype = %bfloat16"),
    "recomputed": (
        MeshSizes(data_shard=2),
        "Trainer.micro_batch_size = 6\nDecoderBlock.activation_checkpointing = @ActivationCheckpointing",
    ),
    "tensor": (MeshSizes(tensor=2), "Trainer.micro_batch_size = 4"),
    "tensor, not along time": (
        MeshSizes(tensor=2),
        "Trainer.micro_batch_size = 4\nMesh.sequence = False\nLanguageModel.tie_word_embeddings = True",
    ),
    "context": (MeshSizes(context=2), "Trainer.micro_batch_size = 4"),
    "replicas": (MeshSizes(data_replicate=2), "Trainer.micro_batch_size = 3"),
}
EXPERTS = {
    "experts": (
        MeshSizes(data_shard=2, expert=2),
        "Trainer.micro_batch_size = 2\nDecoderBlock.mlp = @MixtureOfExperts\nMixtureOfExperts.num_experts = 4",
    )
}
ELEMENT_SIZES = {"float": 4, "double": 8, "c10::BFloat16": 2, "long int": 8}


def bytes_of(events, name):
    """Returns the bytes of the operands of an operation that the profiler of torch recorded."""
    return sum(
        prod(shape) * ELEMENT_SIZES[dtype]
        for recorded, shapes, dtypes in events
        if recorded == name
        for shape, dtype in zip(shapes, dtypes, strict=True)
    )


@pytest.fixture(scope="module")
def of_ranks():
    return run_ranks(2, counted, MODEL, {**CASES, **EXPERTS})


@pytest.mark.parametrize("name", CASES)
def test_bytes_and_shards_are_those_of_processes(of_ranks, name):
    sizes, bindings = CASES[name]
    trainer = trainer_of(MODEL + bindings)
    planned = plan(trainer, sizes, trainer.cluster)
    payload, calls, events, weights, optimizer = of_ranks[0][name]
    assert {key: one.payload for key, one in planned.communication.items()} == payload
    assert {key: one.calls for key, one in planned.communication.items()} == calls
    assert planned.memory.weights == weights
    assert planned.memory.optimizer == optimizer
    # The operand of an all-gather is one of two equal parts of the whole; gloo sums whole tensors to scatter them.
    by_kind = Counter()
    for key, one in planned.communication.items():
        by_kind[key.kind] += one.payload
    assert by_kind["all-gather"] == 2 * bytes_of(events, "gloo:all_gather")
    assert by_kind["reduce-scatter"] + by_kind["all-reduce"] == bytes_of(events, "gloo:all_reduce")


def test_bytes_of_experts_are_those_of_processes_in_the_mean(of_ranks):
    sizes, bindings = EXPERTS["experts"]
    trainer = trainer_of(MODEL + bindings)
    planned = plan(trainer, sizes, trainer.cluster)
    counts = [of_rank["experts"] for of_rank in of_ranks]
    for key, one in planned.communication.items():
        if key.kind != "all-reduce":  # of norms: of the experts of all ranks, of which the plan knows those of one
            # Ranks exchange what the routers choose; together they get what they give.
            assert one.payload == sum(payload[key] for payload, *_ in counts) / 2
            assert one.calls == counts[0][1][key]
    assert planned.memory.weights == counts[0][3]
