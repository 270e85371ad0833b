"""Compiled blocks on a mesh: one graph for all of them, with the loss and gradients of one process."""

import copy
import functools

import pytest
import torch
import torch._dynamo.utils as dynamo
from processes import run_ranks
from tensor_models import SEED, assert_gradients_equal, batch_of, gradients_of, small_model

from ml.distributed import Layout, Mesh, MeshSizes
from ml.distributed.initialization import materialize_shards
from ml.distributed.parallelize import parallelize
from ml.models import materialize

BINDINGS = [
    "Attention.query_norm = @RMSNorm",
    "Linear.bias = True",
    "DecoderBlock.activation_checkpointing = @ActivationCheckpointing",
]


EXPERTS = ["DecoderBlock.mlp = @MixtureOfExperts", "MixtureOfExperts.num_experts = 2"]


def compiled(world, sizes, bindings, is_one_graph):
    model = small_model(bindings)
    batch = batch_of()
    one = materialize(copy.deepcopy(model), "cpu", SEED)
    # The graphs alone: this process ends after them.
    torch.compile = functools.partial(torch.compile, backend="aot_eager", fullgraph=is_one_graph)
    parallelize(model, Layout.of(world, sizes), Mesh(**sizes._asdict()), compile=True)
    materialize_shards(model, world, "cpu", SEED)
    _, expected = gradients_of(one, batch)
    _, found = gradients_of(model, batch)
    # Each data rank takes the same batch.
    assert_gradients_equal({name: gradient / sizes.data_shard for name, gradient in found.items()}, expected)
    return dynamo.counters["stats"]["unique_graphs"], dict(dynamo.counters["graph_break"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes", [MeshSizes(tensor=2), MeshSizes(data_shard=2), MeshSizes(data_shard=2, tensor=2)], ids=str
)
def test_blocks_are_one_graph(sizes):
    assert run_ranks(sizes.world_size, compiled, sizes, BINDINGS, True) == [(1, {})] * sizes.world_size


@pytest.mark.slow
def test_blocks_with_a_router_that_reads_all_positions():
    run_ranks(2, compiled, MeshSizes(tensor=2), EXPERTS, False)
