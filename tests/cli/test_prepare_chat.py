"""`python -m ml prepare_chat`, and training on what it writes."""

import json

import pytest

import ml
from ml.building import build_trainer
from ml.cli.verbs import main


@pytest.fixture
def bindings(tmp_path):
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    lines = [json.dumps({"messages": [{"role": "system", "content": str(n)}, *talk]}) for n in range(40)]
    (tmp_path / "chat.jsonl").write_text("\n".join(lines))
    return ["Trainer.data = @ChatData", f"ChatFiles.paths = {str(tmp_path / 'chat.jsonl')!r}"]


def test_a_prepared_configuration_is_the_same_run(bindings, tmp_path, capsys):
    flags = [f"--gin_bindings={binding}" for binding in bindings]
    output = str(tmp_path / "out")
    assert main(["prepare_chat", "recipes/tiny.gin", *flags, f"--output={output}", "--num_workers=1"]) == 0
    assert f"{output}: 40 conversations" in capsys.readouterr().out
    plain, prepared = (
        ml.load("recipes/tiny.gin", [*bindings, *more]) for more in ([], [f"ChatData.prepared = {output!r}"])
    )
    assert plain.fingerprint == prepared.fingerprint
    hashes = [build_trainer(config).open_data().sha256 for config in (plain, prepared)]
    assert hashes[0] == hashes[1]


def test_other_data_is_refused(tmp_path, capsys):
    assert main(["prepare_chat", "recipes/tiny.gin", f"--output={tmp_path / 'out'}"]) == 2
    assert "must be ChatData, not TextData" in capsys.readouterr().err
    assert main(["prepare_chat", "recipes/tiny.gin", f"--output={tmp_path / 'out'}", "--num_workers=0"]) == 2
    assert "--num_workers must be positive" in capsys.readouterr().err
