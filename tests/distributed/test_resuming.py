"""Runs saved on one mesh and resumed on another, or by one process: losses, metrics and weights."""

import functools
import io
import shutil
from pathlib import Path

import pytest
from processes import run_ranks
from quick_trainers import quick_config

from ml.api import build_trainer
from ml.distributed import Layout, World
from ml.training import RunFolder, train

SETTINGS = """
LanguageModel.vocab_size = 258
LanguageModel.hidden_size = 24
LanguageModel.tie_word_embeddings = True
decoder/Repeat.num_blocks = 2
Attention.num_heads = 4
Attention.num_kv_heads = 2
GatedMLP.intermediate_size = 36
AdamW.learning_rate = 1e-2
CosineSchedule.warmup_steps = 2
Trainer.num_steps = 6
Trainer.batch_size = 4
Trainer.micro_batch_size = 1
Trainer.sequence_length = 16
Trainer.log_every = 1
Checkpoints.every = 3
Checkpoints.keep = None
Validation.every = 3
Validation.num_tokens = 300
"""
AVERAGED = ["Trainer.weight_average = @ExponentialMovingAverage"]
EXPERTS = [
    "DecoderBlock.mlp = @MixtureOfExperts",
    "MixtureOfExperts.num_experts = 4",
    "MixtureOfExperts.router = @SigmoidRouter",
]
MODELS = {"dense": AVERAGED, "experts": EXPERTS}
MESHES = {
    "one": {},
    "data": {"data_shard": 2},
    "tensor": {"tensor": 2},
    "pipeline": {"pipeline": 2},
    "data and tensor": {"data_shard": 2, "tensor": 2},
    "replicas": {"data_replicate": 2, "data_shard": 2},
    "expert": {"data_shard": 2, "expert": 2},
}
# By the number of processes.
LAYOUTS = {
    "dense": {1: ["one"], 2: ["data", "tensor", "pipeline"], 4: ["data and tensor", "replicas"]},
    "experts": {1: ["one"], 2: ["expert", "data"], 4: []},
}
SAVED, LAST = 3, 6


def folder_of(root, model, mesh, source=None):
    return Path(root, model, mesh if source is None else f"{source} to {mesh}")


def run_meshes(world, root, num_ranks, resumes):
    """Trains on every mesh of a number of ranks: from the start, or from step 3 of the run of every mesh."""
    for model, layouts in LAYOUTS.items():
        sources = [mesh for meshes in layouts.values() for mesh in meshes] if resumes else [None]
        for mesh in layouts[num_ranks]:
            axes = [f"Mesh.{axis} = {size}" for axis, size in MESHES[mesh].items()]
            config = quick_config([SETTINGS, *MODELS[model], f"TextFiles.paths = '{root}/text.txt'", *axes])
            trainer = build_trainer(config)
            data, layout = trainer.open_data(), Layout.of(world, trainer.mesh_sizes(world.size))
            for source in sources:
                folder = RunFolder(folder_of(root, model, mesh, source))
                world.first(functools.partial(prepare, root, model, folder, source, config))
                train(trainer, data, folder, world.device, layout=layout, stream=io.StringIO())


def prepare(root, model, folder, source, config):
    """Copies a run as it was after step 3 and before the next checkpoint; its metrics go on to step 6."""
    if source is not None:
        shutil.copytree(folder_of(root, model, source), folder.path)
        shutil.rmtree(folder.checkpoints / f"step_{LAST}")
    folder.create()
    folder.write_config(config.text, config.operative, config.provenance())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Every model on every mesh, from the start and from each other's checkpoints."""
    root = tmp_path_factory.mktemp("runs")
    (root / "text.txt").write_text("".join(f"{number} squared is {number * number}.\n" for number in range(200)))
    run_meshes(World(), root, 1, False)
    run_ranks(4, run_meshes, str(root), 4, False)
    run_ranks(2, run_both, str(root), 2)
    run_ranks(4, run_meshes, str(root), 4, True)
    run_meshes(World(), root, 1, True)
    return root


def run_both(world, root, num_ranks):
    for resumes in (False, True):
        run_meshes(world, root, num_ranks, resumes)


def meshes_of(model):
    return [mesh for meshes in LAYOUTS[model].values() for mesh in meshes]


@pytest.mark.parametrize("model", MODELS)
def test_every_mesh_resumes_from_every_other_with_the_losses_of_one_process(root, model):
    expected = RunFolder(folder_of(root, model, "one")).metrics()
    names = [name for name in expected[SAVED - 1] if name.endswith("loss")]
    assert names == ["loss", "validation_loss", *(["average_validation_loss"] if model == "dense" else [])]
    for mesh in meshes_of(model):
        for source in [None, *meshes_of(model)]:
            found = RunFolder(folder_of(root, model, mesh, source)).metrics()
            assert [record["step"] for record in found] == list(range(1, LAST + 1)), (source, mesh)
            for record, wanted in zip(found, expected, strict=True):
                losses = {name: value for name, value in wanted.items() if name.endswith("loss")}
                # Rounding, and its growth by AdamW, which divides small gradients by their size.
                measured = {name: record[name] for name in losses}
                assert measured == pytest.approx(losses, rel=1e-5), (source, mesh, record["step"])
