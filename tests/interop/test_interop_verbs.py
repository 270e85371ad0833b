"""`python -m ml import` and `python -m ml export` with Hugging Face folders."""

import json
from pathlib import Path

import pytest
import transformers
from hub_models import oracle_of, saved

import ml
from ml.cli import verbs


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return saved(oracle_of("Qwen2", {"vocab_size": 256}), tmp_path / "hub")


def test_import_checks_a_folder_and_prints_its_model_as_gin(folder, capsys):
    assert verbs.main(["import", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "Attention.num_kv_heads = 2" in shown
    assert "# config.json#num_key_value_heads" in shown
    assert "# Qwen 2, 2.5: " in shown
    assert "tensors of F32" in shown
    assert verbs.main(["import", str(folder), "model.gin"]) == 0
    config = ml.load(["model.gin", "training/default.gin"], "Trainer.sequence_length = 16", allow_unused_bindings=True)
    assert config.value("decoder/block_0/mixer/query", "Linear.bias").value == "True"
    assert config.value("decoder/block_0/mixer/output", "Linear.bias").value == "False"
    assert verbs.main(["import", str(folder), "model.gin"]) == 2
    assert "model.gin exists already" in capsys.readouterr().err


def test_what_cannot_be_imported_is_a_message(folder, capsys):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "use_magic": True}))
    assert verbs.main(["import", str(folder)]) == 2
    assert "use_magic = True" in capsys.readouterr().err


def test_export_writes_a_folder_and_refuses_flags_of_other_formats(folder, capsys):
    Path("text.txt").write_text("All work and no play makes Jack a dull boy. " * 200)
    bindings = ["TextFiles.paths = 'text.txt'", "Trainer.num_steps = 1", "Trainer.sequence_length = 16"]
    config = ml.load([], [*bindings, "Trainer.batch_size = 2", "Trainer.validation = None"], init_from=folder)
    ml.train(config, "run", device="cpu")
    capsys.readouterr()
    assert verbs.main(["export", "run", "out", "--format=hf", "--shard_size=20KB", "--dtype=bfloat16"]) == 0
    assert "Qwen 2, 2.5: 27 tensors in 6 files" in capsys.readouterr().out
    assert transformers.AutoConfig.from_pretrained("out").model_type == "qwen2"
    assert Path("out", "model.safetensors.index.json").exists()
    assert verbs.main(["export", "run", "again", "--format=hf", "--base=x"]) == 2
    assert "--base goes with --format=peft" in capsys.readouterr().err
    assert verbs.main(["export", "run", "weights.safetensors", "--merge"]) == 2
    assert "--merge goes with --format=hf" in capsys.readouterr().err
    assert verbs.main(["export", "run", "adapter", "--format=peft"]) == 2
    assert "the model has no adapters" in capsys.readouterr().err
    assert verbs.main(["export", "run", "out", "--format=hf"]) == 2
    assert "out exists: name a new folder" in capsys.readouterr().err
