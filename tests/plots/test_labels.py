"""Labels of runs."""

from pathlib import Path

import pytest

import ml
from ml.errors import UserError
from ml.plots.labels import label_configs, label_runs, settings, short_keys, shorten

LR = "AdamW.learning_rate = "
CASES = {
    "one value": ([[f"{LR}0.001"], [f"{LR}0.01"]], ["learning_rate=0.001", "learning_rate=0.01"]),
    "a value and a default": ([[], ["Trainer.seed = 1"]], ["seed=0", "seed=1"]),
    "two values": (
        [[f"{LR}0.001"], [f"{LR}0.01", "Trainer.seed = 1"]],
        ["learning_rate=0.001  seed=0", "learning_rate=0.01  seed=1"],
    ),
    "a part, and not the options that follow from it": (
        [[], ["DecoderBlock.mixer = @Mamba2"]],
        ["mixer=Attention", "mixer=Mamba2"],
    ),
    "an option that only one part has, where the part does not tell": (
        [[], ["DecoderBlock.mixer = @Mamba2"], ["DecoderBlock.mixer = @Mamba2", "Mamba2.state_size = 32"]],
        ["mixer=Attention  without state_size", "mixer=Mamba2  state_size=128", "mixer=Mamba2  state_size=32"],
    ),
    "a place": ([[], ["query/Linear.bias = True"]], ["without query/Linear.bias", "query/Linear.bias=True"]),
    "one name at two places": (
        [
            ["query/Linear.bias = True", "key/Linear.bias = True"],
            ["query/Linear.bias = False", "key/Linear.bias = False"],
        ],
        None,
    ),
    "equal": ([[], []], ["", ""]),
    "one": ([[]], [""]),
}


@pytest.mark.parametrize(("bindings", "labels"), CASES.values(), ids=CASES)
def test_labels_are_the_differing_settings(bindings, labels):
    found = label_configs([ml.load("recipes/tiny.gin", lines).operative for lines in bindings])
    if labels is None:
        assert len(set(found)) == len(found)
        assert "query/Linear.bias=True" in found[0]
    else:
        assert found == labels


def test_an_explicit_value_equals_the_same_default():
    plain, explicit = ml.load("recipes/tiny.gin"), ml.load("recipes/tiny.gin", ["Trainer.seed = 0"])
    assert settings(explicit.operative)["Trainer.seed"] == ("0", True)
    assert label_configs([plain.operative, explicit.operative]) == ["", ""]


def test_a_long_label_has_only_the_necessary_settings():
    first = "".join(f"A.parameter_{n} = {n}\n" for n in range(12))
    texts = [f"juniper.layer = 'file'\n{first}", f"juniper.layer = 'file'\n{first.replace(' = ', ' = 7')}"]
    assert label_configs(texts) == ["parameter_0=0", "parameter_0=70"]


@pytest.fixture
def folders(tmp_path):
    def write(**texts):
        for name, text in texts.items():
            (tmp_path / name).mkdir()
            (tmp_path / name / "operative_config.gin").write_text(text)
        return [tmp_path / name for name in texts]

    return write


def test_runs_with_one_configuration_are_labeled_by_their_folders(folders):
    one, two = "A.b = 1\n", "A.b = 2\n"
    assert label_runs(folders(x=one, y=one, z=two)) == ["b=1 (x)", "b=1 (y)", "b=2"]


def test_a_single_run_has_its_folder_name_and_equal_names_become_paths(folders, tmp_path, monkeypatch):
    (x,) = folders(x="A.b = 1\n")
    assert label_runs([x]) == ["x"]
    monkeypatch.chdir(tmp_path)
    folders(there="")
    (tmp_path / "there" / "x").mkdir()
    (tmp_path / "there" / "x" / "operative_config.gin").write_text("A.b = 1\n")
    assert label_runs([Path("x"), Path("there/x")]) == ["x", "there/x"]


def test_an_unreadable_operative_config_is_an_error(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        label_runs([tmp_path])


def test_keys_are_as_short_as_possible():
    keys = ["AdamW.learning_rate", "A.x", "B.x", "query/Linear.bias", "key/Linear.bias", "WIDTH"]
    assert short_keys(keys) == {
        "AdamW.learning_rate": "learning_rate",
        "A.x": "A.x",
        "B.x": "B.x",
        "query/Linear.bias": "query/Linear.bias",
        "key/Linear.bias": "key/Linear.bias",
        "WIDTH": "WIDTH",
    }


def test_a_long_text_loses_its_middle():
    assert shorten("abcdefghij", 10) == "abcdefghij"
    assert shorten("abcdefghijk", 10) == "abcde…hijk"
