"""Meshes of three axes, settings of FSDP, and data whose parts have unequal numbers of targets."""

import pytest
from distributed_runs import all_trained, trained
from processes import run_ranks

from ml.distributed import Layout, MeshSizes, World
from ml.training.metrics.throughput import MACHINE_METRICS

# Documents of unequal length: the rows of a batch have unequal numbers of targets.
PACKED = ("TextData.sampling = @PackedDocuments", "TextData.separate_documents = True")
EXPERTS = (
    "DecoderBlock.mlp = @MixtureOfExperts",
    "MixtureOfExperts.num_experts = 4",
    "MixtureOfExperts.router = @SigmoidRouter",
)
TINY_STEPS = ("Trainer.optimizer = @SGD", "SGD.learning_rate = 0.1")  # AdamW divides rounding errors by their size
STAGES = ("Mesh.pipeline = 2", "Trainer.micro_batch_size = 2")
ON_EIGHT = {
    "data, tensor, pipeline": (PACKED, ("Mesh.tensor = 2", *STAGES)),
    "data, context, tensor": (PACKED, ("Mesh.context = 2", "Mesh.tensor = 2")),
    "data, context, pipeline": ((), ("Mesh.context = 2", *STAGES)),
    "replicas, shards, tensor": (PACKED, ("Mesh.data_replicate = 2", "Mesh.data_shard = 2", "Mesh.tensor = 2")),
    "data, experts, tensor": (EXPERTS, ("Mesh.data_shard = 4", "Mesh.expert = 2", "Mesh.tensor = 2")),
    "data, experts, context": (EXPERTS, ("Mesh.data_shard = 4", "Mesh.expert = 2", "Mesh.context = 2")),
}
ON_TWO = {
    "data": (PACKED, ()),
    "kept after the forward pass": (PACKED, ("FullyShard.reshard_after_forward = False",)),
    "offloaded": (PACKED, ("FullyShard.offload = True",)),
    "gathered in bfloat16": (PACKED, ("FullyShard.gather_dtype = %bfloat16",)),
    "summed in bfloat16": (PACKED, ("FullyShard.reduce_dtype = %bfloat16",)),
    "blocks that share weights": (("Repeat.shared = True", "Trainer.micro_batch_size = 2"), ()),
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for number in range(300):
        (folder / f"{number}.txt").write_text(f"{number} squared is {number * number}.\n" * (1 + number % 3))
    return str(folder)


def comparable(record):
    """The numbers of a record; of routers one, for equally good experts may be chosen differently."""
    return {name: value for name, value in record.items() if name not in MACHINE_METRICS | {"routers"}}


@pytest.mark.slow
@pytest.mark.parametrize(("num_ranks", "cases"), [(8, ON_EIGHT), (2, ON_TWO)])
def test_a_mesh_trains_as_one_process(tmp_path, texts, num_ranks, cases):
    on_mesh = [((*case, *TINY_STEPS), mesh) for case, mesh in cases.values()]
    runs = run_ranks(num_ranks, all_trained, str(tmp_path / "mesh"), texts, on_mesh, timeout=900.0)
    assert all(run == runs[0] for run in runs)
    targets = set()
    for (name, (case, _)), records in zip(cases.items(), runs[0], strict=True):
        alone = trained(World(), str(tmp_path / name), texts, (*case, *TINY_STEPS))
        tolerance = 2e-2 if "bfloat16" in name else 2e-6  # 2^-8 of a bfloat16, and 2^-23 of a float32 a few times
        assert len(records) == len(alone) == 4
        for ours, theirs in zip(records, alone, strict=True):
            assert comparable(ours) == pytest.approx(comparable(theirs), rel=tolerance), name
            assert ours.get("routers", {}).keys() == theirs.get("routers", {}).keys()
        targets |= {record["tokens"] for record in records}
    assert any(count % 8 for count in targets)  # the parts of some batch cannot be equal


SIZES = [
    MeshSizes(data_shard=2, tensor=2),
    MeshSizes(data_shard=2, context=2),
    MeshSizes(data_shard=4, expert=2),
    MeshSizes(data_replicate=2, pipeline=2),
]


def parts(world):
    layouts = [Layout.of(world, sizes) for sizes in SIZES]
    return [
        ((layout.data_rank, layout.coordinate("context"), layout.coordinate("pipeline")), layout.part)
        for layout in layouts
    ]


def test_dropout_is_the_same_on_ranks_of_the_tensor_axis_alone():
    """`Layout.part` is in the seed of dropout; for the first part it is that of one process."""
    for found in zip(*run_ranks(4, parts), strict=True):
        seeds = dict(found)
        assert all(seeds[place] == part for place, part in found)
        assert len(set(seeds.values())) == len(seeds)
        assert seeds[0, 0, 0] == ()
