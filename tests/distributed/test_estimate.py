"""Parts of plans: kinds of blocks, traffic, rates of a cluster, and time of operations."""

import pytest
import torch

from ml.api import build_trainer, load
from ml.distributed.estimate.cluster import Cluster
from ml.distributed.estimate.kinds import keep_blocks, kinds_of_blocks
from ml.distributed.estimate.live_memory import LiveMemory
from ml.distributed.estimate.observing import Observed
from ml.distributed.estimate.planned_world import planned_world
from ml.distributed.estimate.traffic import Collective
from ml.distributed.estimate.work import Work
from ml.layers import BlockwiseAttention, Context, DotProductAttention
from ml.layers.attention_kernels import Weighting

CLUSTER = Cluster(peak_flops=100.0, float32_peak_flops=10.0, memory_bandwidth=1e9, devices_per_node=4)


def model_of(*bindings):
    return build_trainer(load("recipes/tiny.gin", ["decoder/Repeat.num_blocks = 4", *bindings])).model


@pytest.mark.parametrize(
    ("binding", "kinds"),
    [
        ("", [[0, 1, 2, 3]]),
        ("block_1/Attention.window_size = 16", [[0, 2, 3], [1]]),
        ("block_0_to_1/DecoderBlock.residual_scale = 0.5", [[0, 1], [2, 3]]),
        ("block_2/query/Linear.bias = True", [[0, 1, 3], [2]]),
        ("block_3/DecoderBlock.lr_scale = 0.0", [[0, 1, 2], [3]]),
        ("block_1/DecoderBlock.activation_checkpointing = @ActivationCheckpointing", [[0, 2, 3], [1]]),
        ("DecoderBlock.activation_checkpointing = @SelectiveActivationCheckpointing", [[0, 1, 2, 3]]),
        ("block_2/GatedMLP.activation = @gelu", [[0, 1, 3], [2]]),
        ("block_1/RMSNorm.epsilon = 1e-3", [[0, 2, 3], [1]]),
        ("block_0/DecoderBlock.mixer = @Mamba2", [[0], [1, 2, 3]]),
        ("DecoderBlock.mlp = @MixtureOfExperts", [[0, 1, 2, 3]]),
    ],
)
def test_blocks_are_alike_where_all_settings_and_shapes_are(binding, kinds):
    expected = [[f"decoder.block_{index}" for index in kind] for kind in kinds]
    assert kinds_of_blocks(model_of(binding)) == expected


def test_blocks_of_a_pattern_are_named_by_their_kind():
    model = build_trainer(load("models/gemma3_1b.gin", allow_unused_bindings=True)).model
    local, everywhere = kinds_of_blocks(model)
    assert (len(local), len(everywhere)) == (22, 4)
    assert all(".local." in path for path in local)
    keep_blocks(model, [local[0], everywhere[0]])
    assert list(model.decoder.named_blocks()) == [path.removeprefix("decoder.") for path in (local[0], everywhere[0])]
    assert sum("mixer.output.weight" in name for name, _ in model.named_parameters()) == 2


class Unknown:
    __slots__ = ()


def test_objects_that_cannot_be_compared_are_not_taken_for_alike():
    model = model_of()
    for block in model.decoder.blocks[:2]:
        block.something = Unknown()
    assert [len(kind) for kind in kinds_of_blocks(model)] == [1, 1, 2]


@pytest.mark.parametrize(
    ("kind", "sent"),
    [("all-gather", 75.0), ("reduce-scatter", 75.0), ("all-reduce", 150.0), ("all-to-all", 75.0), ("send", 100.0)],
)
def test_bytes_that_a_rank_of_four_sends_of_a_tensor_of_100(kind, sent):
    assert Collective("fsdp", kind).sent(100.0, 4) == sent


@pytest.mark.parametrize(
    ("ranks", "bandwidth"),
    [
        ([0, 1, 2, 3], 30.0),  # in one node
        ([0, 4], 5.0),  # one in each node
        ([0, 1, 4, 5], 10.0),  # two in each node use two adapters
        (list(range(32)), 20.0),  # four adapters are still slower than the links in a node
    ],
)
def test_bandwidth_of_a_group_is_that_of_its_slowest_links(ranks, bandwidth):
    assert Cluster(node_bandwidth=30.0, network_bandwidth=5.0, devices_per_node=4).bandwidth(ranks) == bandwidth


def observed(function, *args):
    work = Work(CLUSTER)
    with Observed(work):
        function(*args)
    return work


def test_an_operation_takes_the_longer_of_computing_and_moving():
    left, right = torch.zeros(4, 8), torch.zeros(8, 16)
    work = observed(torch.mm, left, right)
    assert work.flops == 2 * 4 * 8 * 16
    assert work.seconds == work.flops / 10.0
    half = observed(torch.mm, left.bfloat16(), right.bfloat16())
    assert half.seconds == half.flops / 100.0
    moved = observed(torch.add, left, left)
    assert (moved.flops, moved.seconds) == (0.0, 3 * left.nbytes / 1e9)
    assert observed(lambda: left.view(8, 4).transpose(0, 1)).seconds == 0.0


@pytest.mark.parametrize("kernel", [DotProductAttention(), BlockwiseAttention()])
@pytest.mark.parametrize(("causal", "pairs"), [(True, 32 * 33 / 2), (False, 32 * 32)])
def test_flops_of_attention_count_the_visible_pairs(kernel, causal, pairs):
    tensors = [torch.zeros(2, 3, 32, 8, requires_grad=True) for _ in range(3)]
    forward = 2 * 3 * pairs * 2 * (8 + 8)
    output = []
    work = observed(lambda: output.append(kernel(*tensors, Weighting(causal=causal), Context())))
    assert work.flops == forward
    assert observed(lambda: output[0].sum().backward()).flops == 2.5 * forward


def test_live_memory_counts_each_storage_once_while_it_lives():
    given = torch.zeros(10)
    live = LiveMemory([given])
    with Observed(live):
        kept = given + 1
        views = [kept.view(2, 5), kept[:3], given.view(5, 2)]
        assert live.activations() == kept.nbytes
        more = torch.zeros(100)
        del more
        assert live.activations() == kept.nbytes
        given.add_(1)
    assert live.peak == kept.nbytes + 400
    del kept, views
    assert live.activations() == 0


def test_a_planned_world_has_the_size_of_the_plan_and_leaves_no_group():
    with planned_world(512, rank=3) as world:
        assert (world.size, world.rank, world.is_first) == (512, 3, False)
        assert world.host_sum([1, 2]) == [512, 1024]
        assert world.share("folder") == "folder"
        assert world.gather(7) == [7] * 512
    assert not torch.distributed.is_initialized()
