"""Plans against steps of real processes: bytes by axis, and the shards of weights and optimizer state."""

from collections import Counter
from math import prod

import pytest
import torch
from processes import run_ranks
from torch.profiler import ProfilerActivity, profile

from ml.api import build_trainer, load
from ml.distributed import Layout, MeshSizes
from ml.distributed.estimate.observing import Observed
from ml.distributed.estimate.traffic import Traffic, axes_of
from ml.distributed.shards import local
from ml.training.estimate import plan
from ml.training.estimate.tracing import batch_of
from ml.training.state import OPTIMIZER
from ml.training.step import train_step

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


def trainer_of(bindings):
    return build_trainer(load("recipes/tiny.gin", [MODEL + bindings], allow_unused_bindings=True))


def counted(world, cases):
    """Returns for each case what this rank counts in its second step, and the bytes of its shards."""
    found = {}
    for name, (sizes, bindings) in cases.items():
        trainer = trainer_of(bindings)
        layout = Layout.of(world, sizes)
        state = trainer.start(CPU, layout)
        part = trainer.batch_size // sizes.num_data_ranks
        batches = [batch_of(trainer, layout)] * (part // min(part, trainer.micro_batch_size))
        targets = trainer.batch_size * trainer.sequence_length
        step = (state, batches, trainer.precision, trainer.max_grad_norm, CPU, None, targets)
        train_step(*step)
        traffic = Traffic(axes_of(layout))
        with Observed(traffic):
            train_step(*step)
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
            train_step(*step)
        weights = sum(local(parameter).nbytes for parameter in state.model.parameters())
        own = {id(tensor): tensor for key, tensor in state.tensors().items() if key.startswith(OPTIMIZER)}
        optimizer = sum(local(tensor).nbytes for tensor in own.values())
        of_gloo = {name: bytes_of(profiled, name) for name in ("gloo:all_gather", "gloo:all_reduce")}
        found[name] = (dict(traffic.payload), dict(traffic.calls), of_gloo, weights, optimizer)
    return found


def bytes_of(profiled, name):
    """Returns the bytes of the operands of an operation that the profiler of torch recorded."""
    events = [event for event in profiled.events() if event.name == name]
    return sum(
        prod(shape) * ELEMENT_SIZES[dtype]
        for event in events
        for shape, dtype in zip(event.input_shapes, event.input_dtypes, strict=True)
    )


@pytest.fixture(scope="module")
def of_ranks():
    return run_ranks(2, counted, {**CASES, **EXPERTS})


@pytest.mark.parametrize("name", CASES)
def test_bytes_and_shards_are_those_of_processes(of_ranks, name):
    sizes, bindings = CASES[name]
    trainer = trainer_of(bindings)
    planned = plan(trainer, sizes, trainer.cluster)
    payload, calls, of_gloo, weights, optimizer = of_ranks[0][name]
    assert {key: one.payload for key, one in planned.communication.items()} == payload
    assert {key: one.calls for key, one in planned.communication.items()} == calls
    assert planned.memory.weights == weights
    assert planned.memory.optimizer == optimizer
    # The operand of an all-gather is one of two equal parts of the whole; gloo sums whole tensors to scatter them.
    by_kind = Counter()
    for key, one in planned.communication.items():
        by_kind[key.kind] += one.payload
    assert by_kind["all-gather"] == 2 * of_gloo["gloo:all_gather"]
    assert by_kind["reduce-scatter"] + by_kind["all-reduce"] == of_gloo["gloo:all_reduce"]


def test_bytes_of_experts_are_those_of_processes_in_the_mean(of_ranks):
    sizes, bindings = EXPERTS["experts"]
    trainer = trainer_of(bindings)
    planned = plan(trainer, sizes, trainer.cluster)
    counts = [of_rank["experts"] for of_rank in of_ranks]
    for key, one in planned.communication.items():
        if key.kind != "all-reduce":  # of norms: of the experts of all ranks, of which the plan knows those of one
            # Ranks exchange what the routers choose; together they get what they give.
            assert one.payload == sum(payload[key] for payload, *_ in counts) / 2
            assert one.calls == counts[0][1][key]
    assert planned.memory.weights == counts[0][3]
