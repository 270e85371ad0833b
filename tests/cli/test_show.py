"""Output of `show`: read from the source without importing torch, equal to the registry."""

import subprocess
import sys

import pytest

from ml.cli import registry_catalogue, show, source_catalogue
from ml.errors import UserError


def built_in() -> list:
    return sorted(entry for entry in registry_catalogue.entries() if entry.selector.startswith("ml."))


def test_the_source_describes_every_configurable_as_the_registry_does():
    read = {entry.selector: entry for entry in source_catalogue.entries()}
    assert read == {entry.selector: entry for entry in built_in()}


def test_a_parameter_is_found_by_name():
    lines = [line for line in show.lookup(built_in(), "intermediate_size").splitlines() if line[:3].strip()]
    assert [line.split()[0] for line in lines] == sorted(line.split()[0] for line in lines)
    assert {"GatedMLP.intermediate_size", "Mamba2.intermediate_size"} <= {line.split()[0] for line in lines}


@pytest.mark.parametrize("name", ["Linear.bias", "layers.linear.Linear.bias"])
def test_a_parameter_of_one_configurable_is_found_with_its_description(name):
    row, *description = show.lookup(built_in(), name).splitlines()
    assert row.split() == ["Linear.bias", "bool", "True"]
    assert [line.strip() for line in description] == ["Adds b, (out_features), to the output."]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Linear.biass", "Linear has no parameter 'biass'; did you mean 'bias'?"),
        ("Atention", "there is no configurable or parameter 'Atention'; did you mean 'Attention'?"),
        ("num_head", "there is no configurable or parameter 'num_head'; did you mean 'num_heads'?"),
    ],
)
def test_an_unknown_name_is_an_error_with_a_suggestion(name, message):
    with pytest.raises(UserError) as caught:
        show.lookup(built_in(), name)
    assert str(caught.value) == message


def test_ambiguous_source_falls_back_to_the_registry(monkeypatch, capsys):
    def unclear() -> list:
        raise source_catalogue.UnclearError

    monkeypatch.setattr(source_catalogue, "entries", unclear)
    assert show._entries(()) == registry_catalogue.entries()


HEAVY = "import sys; from ml.cli.verbs import main; code = main({0}); print(code, 'torch' in sys.modules)"


@pytest.mark.parametrize("arguments", [["show"], ["show", "Attention"], ["show", "bias"]])
def test_torch_is_not_imported(arguments):
    command = [sys.executable, "-c", HEAVY.format(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"


def test_training_imports_checkpoint_libraries_lazily():
    code = "import sys, ml.training; print('torch.distributed.checkpoint' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_user_modules_are_imported(tmp_path, monkeypatch, capsys):
    (tmp_path / "shown_layers.py").write_text(
        "from ml.config import configurable\n\n\n@configurable\ndef shown(size: int = 3):\n"
        '    """A layer.\n\n    Args:\n        size: Number of rows,\n            one at least.\n    """\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    (entry,) = [e for e in show._entries(["shown_layers"]) if e.name == "shown"]
    lines = ["shown (shown_layers.shown)", "", "A layer.", "", "  size  int  3", "      Number of rows, one at least."]
    assert entry.text().splitlines() == lines
