"""Runs saved on one mesh and resumed on another, or by one process: losses, metrics and weights."""

import functools
import io
import shutil
from pathlib import Path

import pytest
import torch
from distributed_runs import squares
from processes import run_ranks
from quick_trainers import quick_config
from safetensors.torch import load_file

from ml.api import build_trainer
from ml.distributed import Layout, World
from ml.runs import Run
from ml.training import FromRun, RunFolder, train

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
Trainer.num_steps = 5
Trainer.batch_size = 4
Trainer.micro_batch_size = 2
Trainer.sequence_length = 16
Trainer.log_every = 1
Checkpoints.every = 3
Checkpoints.keep = None
Validation.every = 3
Validation.num_tokens = 80
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
    "context": {"context": 2},
    "expert": {"data_shard": 2, "expert": 2},
}
# By the number of processes.
LAYOUTS = {
    "dense": {1: ["one"], 2: ["data", "tensor", "pipeline", "context"], 4: ["data and tensor", "replicas"]},
    "experts": {1: ["one"], 2: ["expert", "data"], 4: []},
}
AS_DATA = {"replicas", "context"}
STARTS = {"one": "data", "data": "one", "pipeline": "data and tensor"}  # from the last weights of another mesh
SAVED, LAST = 3, 5


def folder_of(root, model, mesh, source=None):
    return Path(root, model, mesh if source is None else f"{source} to {mesh}")


def run_meshes(world, root, num_ranks, resumes):
    """Trains on every mesh of a number of ranks: from the start, or from step 3 of the run of every mesh."""
    for model, layouts in LAYOUTS.items():
        for mesh in layouts[num_ranks]:
            sources = sources_of(model, mesh) if resumes else [None]
            axes = [f"Mesh.{axis} = {size}" for axis, size in MESHES[mesh].items()]
            config = quick_config([SETTINGS, *MODELS[model], f"TextFiles.paths = '{root}/text.txt'", *axes])
            trainer = build_trainer(config)
            data, layout = trainer.open_data(), Layout.of(world, trainer.mesh_sizes(world.size))
            for source in sources:
                folder = RunFolder(folder_of(root, model, mesh, source))
                world.first(functools.partial(prepare, root, model, folder, source, config))
                train(trainer, data, folder, world.device, layout=layout, stream=io.StringIO())
            if resumes and (source := STARTS.get(mesh)):
                weights = FromRun(path=str(folder_of(root, model, source)), step=LAST).open(world)
                folder = RunFolder(folder_of(root, model, mesh, f"weights of {source}"))
                train(trainer, data, folder, world.device, initial=weights, layout=layout, stream=io.StringIO())


def prepare(root, model, folder, source, config):
    """Copies a run as it was after step 3 and before the next checkpoint; its metrics continue to step 5."""
    if source is not None:
        shutil.copytree(folder_of(root, model, source), folder.path)
        shutil.rmtree(folder.checkpoints / f"step_{LAST}")
    folder.create()
    folder.write_config(config.text, config.operative, config.provenance())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Every model on every mesh, from the start and from each other's checkpoints."""
    root = tmp_path_factory.mktemp("runs")
    (root / "text.txt").write_text(squares(200))
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


def sources_of(model, mesh):
    """The meshes whose runs a mesh resumes: all, apart from pairs of one whose shards are as those of "data"."""
    return [source for source in meshes_of(model) if "one" in (source, mesh) or not {source, mesh} & AS_DATA]


@pytest.mark.parametrize("model", MODELS)
def test_every_mesh_resumes_from_every_other_with_the_losses_of_one_process(root, model):
    expected = RunFolder(folder_of(root, model, "one")).metrics()
    names = [name for name in expected[SAVED - 1] if name.endswith("loss")]
    assert names == ["loss", "validation_loss", *(["average_validation_loss"] if model == "dense" else [])]
    for mesh in meshes_of(model):
        for source in [None, *sources_of(model, mesh)]:
            found = RunFolder(folder_of(root, model, mesh, source)).metrics()
            assert [record["step"] for record in found] == list(range(1, LAST + 1)), (source, mesh)
            assert_equal_losses(found, expected)


def assert_equal_losses(found, expected):
    for record, wanted in zip(found, expected, strict=True):
        losses = {name: value for name, value in wanted.items() if name.endswith("loss")}
        # Rounding, and its growth by AdamW, which divides small gradients by their size.
        assert {name: record[name] for name in losses} == pytest.approx(losses, rel=1e-5), record["step"]


def test_a_run_starts_from_the_weights_of_a_run_on_another_mesh(root):
    for model in MODELS:
        folders = [folder_of(root, model, mesh, f"weights of {source}") for mesh, source in STARTS.items()]
        first, *others = [RunFolder(folder).metrics() for folder in folders if folder.exists()]
        assert first[0]["loss"] < 5.0 < RunFolder(folder_of(root, model, "one")).metrics()[0]["loss"]
        assert others
        for found in others:
            assert_equal_losses(found, first)


@pytest.mark.parametrize(
    ("model", "mesh"), [("dense", "data and tensor"), ("dense", "pipeline"), ("experts", "expert")]
)
def test_one_process_uses_the_run_of_many(root, model, mesh, tmp_path):
    run, by_one = (Run(folder_of(root, model, each)) for each in (mesh, "one"))
    (measured,) = run.evaluate()["validation_sets"]
    assert measured["loss"] == pytest.approx(by_one.metrics()[-1]["validation_loss"], rel=1e-5)
    texts = [one.generate("7 squared", num_tokens=10, temperature=0.0) for one in (run, by_one)]
    assert texts[0] == texts[1]
    run.export(tmp_path / "weights.safetensors")
    exported, expected = load_file(tmp_path / "weights.safetensors"), run.build().state_dict()
    weights = by_one.build().state_dict()
    for name, weight in exported.items():
        assert torch.equal(weight, expected[name])
        assert torch.allclose(weight, weights[name], atol=1e-2), name  # of the size of a step of AdamW
    tied = {name for name in weights if name not in exported}
    assert all(weights[name] is weights["embeddings.token.weight"] for name in tied)
