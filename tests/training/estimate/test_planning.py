"""Plans of large runs, and what fits into a device."""

import math

import pytest
import torch

from ml.api import build_trainer, load
from ml.distributed import Layout, MeshSizes
from ml.training.estimate import candidates, describe_plan, fits, memory_of_step, micro_batches, plan
from ml.training.estimate.extrapolation import with_blocks
from ml.training.estimate.measurements import Memory, Work
from ml.training.estimate.plans import PIPELINE_SEND, Plan
from ml.training.estimate.settings import changed
from ml.training.estimate.stages import ranks_of_pipeline
from ml.training.estimate.tracing import trace

TENSOR = MeshSizes(data_shard=2, tensor=4)
PATHS = ["decoder.block_0", "decoder.block_1"]  # all blocks of recipes/tiny.gin
FSDP_512 = MeshSizes(data_shard=512)
LARGE = [
    "Trainer.precision = @MixedBFloat16",
    "Trainer.batch_size = 1024",
    "Trainer.micro_batch_size = 1",
    "Trainer.sequence_length = 8192",
    "LanguageModelHead.loss_chunk_size = 4096",
    "DecoderBlock.activation_checkpointing = @ActivationCheckpointing",
    "FullyShard.gather_dtype = %bfloat16",
    "FullyShard.reduce_dtype = %float32",
]


def trainer_of(file, *bindings):
    return build_trainer(load(file, bindings, allow_unused_bindings=True))


def llama_shards(blocks, hidden, intermediate, kv, vocabulary, num_ranks):
    """Parameters of Llama, and those of the first of `num_ranks` ranks that divide the rows of each."""
    block = [(hidden, hidden)] * 2 + [(kv, hidden)] * 2 + [(intermediate, hidden)] * 2 + [(hidden, intermediate)]
    shapes = blocks * [*block, (hidden, 1), (hidden, 1)] + [(vocabulary, hidden)] * 2 + [(hidden, 1)]
    return sum(map(math.prod, shapes)), sum(math.ceil(rows / num_ranks) * columns for rows, columns in shapes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "count", "shape"),
    [
        ("models/llama_70b.gin", 70_553_706_496, (80, 8192, 28672, 1024, 128256)),
        ("models/llama_8b.gin", 8_030_261_248, (32, 4096, 14336, 1024, 128256)),
    ],
)
def test_memory_and_traffic_of_a_large_model_follow_its_formula(file, count, shape):
    planned = plan(trainer_of(file, *LARGE), FSDP_512, trainer_of(file).cluster)
    whole, shard = llama_shards(*shape, 512)
    assert whole == count
    assert planned.memory.weights == planned.memory.gradients == 4 * shard
    assert planned.memory.optimizer == pytest.approx(8 * shard, rel=1e-5)  # and a step count of each parameter
    padded = 512 * shard  # of equal shards
    by_kind = {key.kind: one.payload for key, one in planned.communication.items()}
    # Two micro-batches: weights gathered in bfloat16 forward and backward, gradients summed in float32.
    assert by_kind["all-gather"] == 2 * 2 * 2 * padded
    assert by_kind["reduce-scatter"] == 2 * 4 * padded
    # 8 FLOPs a parameter and token with recomputation, besides attention.
    assert planned.work.flops == pytest.approx(8 * whole * 2 * 8192, rel=0.15)
    assert planned.step_seconds >= planned.flops_per_token * 2 * 8192 / planned.peak_flops
    assert planned.utilization < 1.0


@pytest.mark.slow
def test_a_large_model_is_planned_in_four_stages():
    trainer = trainer_of("models/llama_8b.gin", *LARGE, "Mesh.pipeline = 4")
    sizes = MeshSizes(pipeline=4, data_shard=16)
    ranks = ranks_of_pipeline(trainer, sizes, 64, trainer.cluster)
    blocks, _ = llama_shards(8, 4096, 14336, 1024, 0, 16)
    blocks -= 4096  # the last norm
    wanted = [blocks + 128256 * 4096, blocks, blocks, blocks + 128256 * 4096 + 4096]
    assert [rank.memory.weights for rank in ranks] == [4 * parameters / 16 for parameters in wanted]
    assert [rank.stages for rank in ranks] == [(0,), (1,), (2,), (3,)]
    # The stream of 8,192 tokens in bfloat16, forward and backward, once at the ends and twice in the middle.
    stream = 2 * 8192 * 4096
    assert [rank.work.payload[PIPELINE_SEND] for rank in ranks] == [64 * borders * stream for borders in (1, 2, 2, 1)]


def test_meshes_with_a_pipeline_are_those_into_which_the_model_can_be_cut():
    trainer = trainer_of("recipes/tiny.gin", "decoder/Repeat.num_blocks = 3", "Trainer.batch_size = 16")
    trainer = changed(trainer, micro_batch_size=1)
    found = {one.sizes: one for one in candidates(trainer, 4, trainer.cluster)}
    assert found[MeshSizes(pipeline=2, data_shard=2)].plan.stages
    assert MeshSizes(pipeline=4) not in found


@pytest.mark.slow
def test_a_mixture_of_experts_is_planned():
    trainer = trainer_of("models/mixtral_8x7b.gin", *LARGE)
    planned = plan(trainer, FSDP_512, trainer.cluster)
    shard = sum(math.ceil(p.shape[0] / 512) * math.prod(p.shape[1:]) for p in trainer.model.parameters())
    assert planned.memory.weights == 4 * shard
    assert planned.utilization < 1.0


@pytest.mark.parametrize(
    "bindings",
    [
        ["decoder/Repeat.num_blocks = 5", "Trainer.micro_batch_size = 1"],
        ["decoder/Repeat.num_blocks = 4", "block_1/DecoderBlock.mixer = @Mamba2", "Trainer.max_grad_norm = None"],
        ["decoder/Repeat.num_blocks = 4", "decoder/Repeat.shared = True", "Trainer.micro_batch_size = 2"],
    ],
)
def test_blocks_and_micro_batches_are_multiplied_as_they_are_traced(bindings, monkeypatch):
    trainer = trainer_of("recipes/tiny.gin", *bindings)
    sizes = MeshSizes(data_shard=1)
    planned = plan(trainer, sizes, trainer.cluster)
    monkeypatch.setattr("ml.training.estimate.planning.kinds_of_blocks", each_block_alone)
    whole = plan(trainer, sizes, trainer.cluster)
    assert planned.memory._replace(working=0) == whole.memory._replace(working=0)
    assert planned.memory.working == pytest.approx(whole.memory.working, rel=0.1)
    assert planned.work.flops == whole.work.flops
    assert planned.work.seconds == pytest.approx(whole.work.seconds, rel=1e-3)


def each_block_alone(model):
    return [[f"decoder.{name}"] for name in model.decoder.named_blocks()]


@pytest.mark.parametrize(
    "bindings",
    [
        [],
        ["Linear.apply_peft = @LoRA", "Parameter.lr_scale = 0.0", "adapter/Parameter.lr_scale = 1.0"],
        ["block_1/DecoderBlock.mlp = @MixtureOfExperts", "Trainer.precision = @MixedBFloat16"],
    ],
    ids=["Llama", "adapters", "experts"],
)
def test_work_of_one_process_is_that_of_all_its_micro_batches(bindings):
    trainer = trainer_of("recipes/tiny.gin", *bindings, "Trainer.batch_size = 8", "Trainer.micro_batch_size = 2")
    planned = plan(trainer, MeshSizes(), trainer.cluster)
    whole = trace(trainer, with_blocks(trainer, PATHS, trainer.cluster), Layout(), 4, trainer.cluster)
    assert planned.work.flops == whole.work.flops
    # The first of four micro-batches adds its gradients to none, which is not subtracted.
    assert planned.work.seconds == pytest.approx(whole.work.seconds, rel=0.05)
    assert planned.memory._replace(working=0) == whole.memory._replace(working=0)
    assert planned.memory.working == pytest.approx(whole.memory.working, rel=0.01)


def test_the_largest_micro_batch_is_that_of_trying_all(monkeypatch):
    trainer = trainer_of("recipes/tiny.gin", "Trainer.batch_size = 6", "Trainer.micro_batch_size = 3")
    plans = {}

    def planned(trainer, sizes, cluster):
        policy = trainer.model.decoder.block_0.activation_checkpointing
        key = "None" if policy is None else f"@{type(policy).__name__}", trainer.micro_batch_size
        if key not in plans:
            plans[key] = plan(trainer, sizes, cluster)
        return plans[key]

    monkeypatch.setattr("ml.training.estimate.micro_batches.plan", planned)
    policies = [fit.policy for fit in fits(trainer, trainer.cluster, 2**20)]
    for policy in policies:
        of_policy = trainer_of("recipes/tiny.gin", f"DecoderBlock.activation_checkpointing = {policy}")
        for size in (1, 2, 3, 6):
            planned(changed(of_policy, micro_batch_size=size, batch_size=6), MeshSizes(), trainer.cluster)
    needed = sorted(one.total_memory for one in plans.values())
    assert len(needed) == 12
    for memory in (needed[0] - 1, *needed[::2], needed[-1] + 1):
        for fit in fits(trainer, trainer.cluster, int(memory)):
            fitting = [
                size for (policy, size), one in plans.items() if policy == fit.policy and one.total_memory <= memory
            ]
            assert (None if fit.plan is None else fit.plan.micro_batch_size) == max(fitting, default=None)


DIVISORS = [size for size in range(1, 385) if 384 % size == 0]
MEMORY = {
    "linear": lambda size: 100 + 3 * size,
    "maximum of two moments": lambda size: 100 + max(40 + size, 2.5 * size),
    "late maximum": lambda size: 100 + max(40, 3 * size),
    "larger for one sequence": lambda size: 100 + 3 * size + (2.5 if size == 1 else 0),
    "not convex": lambda size: 100 + 50 * size**0.5,
}


@pytest.mark.parametrize("name", MEMORY)
def test_few_sizes_are_planned(name):
    counts = []
    for start in (1, 2, 24, 384):
        for limit in (90, 101, 105, 150, 230, 300, 640, 1_000, 5_000):
            tried = []

            def planned(size, tried=tried):
                tried.append(size)
                return plan_of(MEMORY[name](size))

            found = micro_batches._largest(DIVISORS, start, planned, limit)
            expected = max((MEMORY[name](size) for size in DIVISORS if MEMORY[name](size) <= limit), default=None)
            assert (None if found is None else found.total_memory) == expected
            assert len(set(tried)) == len(tried)
            counts.append(len(tried))
    assert max(counts) <= 8
    if name == "linear":
        assert max(counts) <= 4


def plan_of(memory):
    """A plan of which 100 bytes do not depend on the micro-batch."""
    return Plan(MeshSizes(), 1, 2, 1, None, 1.0, Memory(weights=100, activations=memory - 100), Work(), {})


def test_the_plan_of_the_run_is_not_made_again(monkeypatch):
    bindings = ["Trainer.batch_size = 8", "DecoderBlock.activation_checkpointing = @ActivationCheckpointing"]
    trainer = trainer_of("recipes/tiny.gin", *bindings)
    own = plan(trainer, MeshSizes(), trainer.cluster)
    found = {fit.policy: fit.plan for fit in fits(trainer, trainer.cluster, int(own.total_memory), own)}
    assert found["@ActivationCheckpointing"] is own
    assert found["None"] is not own


@pytest.mark.parametrize("policy", ["None", "@SelectiveActivationCheckpointing", "@ActivationCheckpointing"])
def test_what_fits_needs_the_memory_of_its_plan_to_the_byte(policy, monkeypatch):
    monkeypatch.setattr(micro_batches, "_POLICIES", {policy: micro_batches._POLICIES[policy]})
    bindings = ["Trainer.batch_size = 4", "Trainer.micro_batch_size = 4", "Cluster.device = 'cpu'"]
    of_policy = trainer_of("recipes/tiny.gin", *bindings, f"DecoderBlock.activation_checkpointing = {policy}")
    needed = int(memory_of_step(of_policy, torch.device("cpu")).peak)
    trainer = trainer_of("recipes/tiny.gin", *bindings)

    def largest(memory):
        (fit,) = fits(trainer, trainer.cluster, memory)
        return fit.plan

    fitting = largest(needed)
    assert fitting.micro_batch_size == 4
    assert fitting.total_memory == needed
    smaller = largest(needed - 1)
    assert smaller is None or smaller.micro_batch_size < 4


def test_nothing_fits_into_less_than_the_weights():
    trainer = trainer_of("recipes/tiny.gin")
    assert all(fit.plan is None for fit in fits(trainer, trainer.cluster, 2**20))


def test_meshes_that_a_run_cannot_use_have_a_reason():
    trainer = trainer_of("recipes/tiny.gin", "Trainer.batch_size = 4", "Cluster.devices_per_node = 4")
    found = {one.sizes: one for one in candidates(trainer, 8, trainer.cluster)}
    whole = found[MeshSizes(data_shard=8)]
    assert whole.plan is None
    assert "Trainer.batch_size (4) is not divisible by the 8 data ranks" in whole.obstacle
    assert found[MeshSizes(data_shard=4, context=2)].plan is not None
    assert "Attention.num_kv_heads (2) is not divisible by Mesh.tensor (4)" in found[TENSOR].obstacle


def test_a_plan_is_described():
    trainer = trainer_of("recipes/tiny.gin")
    text = describe_plan(plan(trainer, MeshSizes(data_shard=2), trainer.cluster), 2**30)
    assert "2 processes (data_shard 2), a step of 1 micro-batch of 2 sequences" in text
    assert "fits into 1.0 GiB" in text
    assert "fsdp  all-gather" in text
    alone = describe_plan(plan(trainer, MeshSizes(), trainer.cluster), None)
    assert "plan              one process, a step of 1 micro-batch of 4 sequences\n" in alone
