"""Python API: load, build, open a run."""

import json
import subprocess
import sys

import pytest
import torch

import ml
from ml.api import build_trainer
from ml.training import FromRun, RunFolder, train
from ml.training.checkpoints.policy import open_checkpoint
from ml.training.checkpoints.weight_files import read_weights

CPU = torch.device("cpu")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{n} times {n} is {n * n}.\n" for n in range(400)))
    return f"TextFiles.paths = {str(path)!r}"


def trained(config, folder):
    trainer = build_trainer(config)
    run = RunFolder(folder)
    run.create()
    run.write_config(config.text, config.operative, config.provenance())
    train(trainer, trainer.open_data(), run, CPU)
    return ml.open_run(folder)


def test_a_built_model_returns_logits():
    model = ml.build(ml.load("recipes/tiny.gin"), device="cpu")
    logits = model(torch.randint(256, (2, 9)))
    assert logits.shape == (2, 9, 256)
    assert torch.isfinite(logits).all()


def test_two_configurations_build_separate_models():
    small, large = (
        ml.load("recipes/tiny.gin"),
        ml.load("recipes/tiny.gin", bindings=["LanguageModel.hidden_size = 128"]),
    )
    with pytest.raises(ml.ConfigError):
        ml.load("recipes/tiny.gin", bindings=["LanguageModel.hiden_size = 128"])
    widths = [ml.build(config).embeddings.token.weight.shape[1] for config in (small, large, small)]
    assert widths == [64, 128, 64]
    first, second = (dict(ml.build(small).named_parameters()) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_from_a_saved_operative_config_has_bitwise_the_same_losses(tmp_path, text):
    config = ml.load("recipes/tiny.gin", bindings=[text, "DecoderBlock.dropout = 0.1", "query/Linear.bias = True"])
    first = trained(config, tmp_path / "first")
    again = ml.load(tmp_path / "first" / "operative_config.gin")
    assert again.fingerprint == config.fingerprint
    second = trained(again, tmp_path / "second")
    losses = [[record["loss"] for record in run.metrics()] for run in (first, second)]
    assert losses[0] == losses[1]
    assert len(losses[0]) >= 5


def test_a_run_opens_with_its_configuration_its_weights_and_its_metrics(tmp_path, text):
    config = ml.load("recipes/tiny.gin", bindings=[text, "Checkpoints.every = 10"])
    run = trained(config, tmp_path / "run")
    assert run.config == config
    last = run.build()
    assert not last.training
    initial, middle = ml.build(config), run.build(step=10)
    name = "decoder.block_0.mixer.query.weight"
    weights = [model.get_parameter(name) for model in (initial, middle, last)]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    dataset = build_trainer(config).open_data().training
    batch = dataset.batch(0, 4)
    assert last.loss(batch.tokens, batch.targets).mean < initial.loss(batch.tokens, batch.targets).mean
    assert [record["step"] for record in run.metrics()] == [1, 5, 10, 15, 20]


def test_a_missing_checkpoint_is_an_error_that_names_it(tmp_path, text):
    run = trained(ml.load("recipes/tiny.gin", bindings=[text]), tmp_path / "run")
    with pytest.raises(ValueError, match=r"there is no checkpoint of step 7 in .*; there are: 20"):
        run.build(step=7)


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="there is no run in"):
        ml.open_run(tmp_path)


def test_a_run_initializes_from_the_model_and_weights_of_another(tmp_path, text):
    bindings = [text, "query/Linear.bias = True", "Attention.num_kv_heads = 4"]
    source = trained(ml.load("recipes/tiny.gin", bindings=bindings), tmp_path / "source")
    config = ml.load(
        ["data/standard_library.gin", "training/default.gin"],
        [
            text,
            "Trainer.sequence_length = 64",
            "AdamW.learning_rate = 1e-30",
            "Trainer.num_steps = 1",
            "Trainer.batch_size = 2",
        ],
        imported=source.imported_values(),
    )
    trainer = build_trainer(config)
    folder = RunFolder(tmp_path / "next")
    train(trainer, trainer.open_data(), folder, CPU, initial=FromRun(path=str(source.path)).open())
    ours = trainer.start(CPU).model
    read_weights(open_checkpoint(folder.checkpoints), ours)
    ours, theirs = ours.state_dict(), source.build().state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    imported = next(r for r in config.records() if (r.path, r.parameter) == ("decoder/block_0/mixer", "num_kv_heads"))
    assert (imported.value, imported.source) == ("4", "imported")


def test_weights_of_another_shape_are_refused(tmp_path, text):
    source = trained(ml.load("recipes/tiny.gin", bindings=[text]), tmp_path / "source")
    trainer = build_trainer(ml.load("recipes/tiny.gin", bindings=[text, "GatedMLP.intermediate_size = 64"]))
    initial = FromRun(path=str(source.path)).open()
    with pytest.raises(ValueError, match=r"the model has torch.float32 \(64, 64\)"):
        train(trainer, trainer.open_data(), RunFolder(tmp_path / "next"), CPU, initial=initial)


def test_importing_the_package_imports_no_torch():
    program = "import sys, ml, ml.cli.entry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_importing_ml_is_enough_for_the_three_calls(tmp_path):
    program = "import ml; config = ml.load('recipes/tiny.gin'); print(ml.build(config).vocab_size)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "256\n"


def test_provenance_is_written_to_the_run_folder(tmp_path, text):
    config = ml.load("recipes/tiny.gin", bindings=[text])
    trained(config, tmp_path / "run")
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert provenance["fingerprint"] == config.fingerprint
    query = [
        r for r in provenance["records"] if r["path"] == "decoder/block_1/mixer/query" and r["parameter"] == "bias"
    ]
    lines = (ml.SHIPPED_CONFIGS / "models" / "llama.gin").read_text().splitlines()
    line = lines.index("Linear.bias = False") + 1
    assert [(r["value"], r["source"], r["location"]) for r in query] == [
        ("False", "file", f"configs/models/llama.gin:{line}")
    ]
