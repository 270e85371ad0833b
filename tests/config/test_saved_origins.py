"""A saved operative config keeps the origin of each value."""

import json

import pytest

import ml
from ml.config import ConfigError, load
from ml.config.saved_origins import PROVENANCE


def save(config, folder):
    folder.mkdir()
    (folder / "operative_config.gin").write_text(config.operative)
    (folder / PROVENANCE).write_text(json.dumps(config.provenance()))
    return folder / "operative_config.gin"


def set_values(config):
    """Source and place of each value that a user set, by the place in the model."""
    return {(r.path, r.configurable, r.parameter): (r.source, r.location) for r in config.records() if r.explicit}


@pytest.fixture(scope="module")
def original():
    bindings = ["Linear.bias = True", "block_1/query/Linear.bias = False"]
    return ml.load("recipes/tiny.gin", bindings)


@pytest.fixture
def saved(original, tmp_path):
    return save(original, tmp_path / "saved")


def test_places_survive_saving_and_loading_any_number_of_times(original, saved, tmp_path):
    first = ml.load(saved)
    second = ml.load(save(first, tmp_path / "again"))
    assert {source for source, _ in set_values(original).values()} == {"file", "flag"}
    assert set_values(first) == set_values(second) == set_values(original)
    assert first.operative == original.operative
    assert second.provenance()["statements"] == original.provenance()["statements"]


def test_config_gin_has_the_original_places(original, saved):
    text = ml.load(saved).text.partition("juniper.layer = 'file'")[2]
    lines = [line for line in text.splitlines() if "  # " in line and "%juniper.left_out" not in line]
    placed = {line.split("  # ")[-1] for line in lines}
    assert placed == {location for _, location in set_values(original).values()}
    assert "--gin_bindings[1]" in placed


def test_a_later_binding_has_its_own_place(saved):
    config = ml.load(saved, ["AdamW.learning_rate = 0.5"])
    assert config.value("optimizer", "AdamW.learning_rate").location == "--gin_bindings[0]"
    (overridden,) = [o for o in config.value("optimizer", "AdamW.learning_rate").overrode if o.source == "file"]
    assert overridden.location.startswith("configs/base.gin:")


def test_an_error_names_the_line_that_was_read(saved):
    line = saved.read_text().splitlines().index("Linear.bias = True") + 1
    with pytest.raises(ConfigError, match=rf"saved/operative_config\.gin:{line}: it is overridden everywhere by"):
        ml.load(saved, ["decoder/Linear.bias = False"])


def test_an_edited_file_has_the_places_of_its_lines(saved):
    saved.write_text(saved.read_text().replace("Trainer.batch_size = 4", "Trainer.batch_size = 6"))
    found = set_values(ml.load(saved))
    assert all(source == "file" for source, _ in found.values())
    assert all(str(saved.name) in location for _, location in found.values())


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: None,
        lambda content: [],
        lambda content: content | {"statements": 3},
        lambda content: content | {"statements": [3]},
        lambda content: content | {"statements": [{"statement": "Linear.bias = True"}]},
        lambda content: content | {"statements": [{"statement": [], "source": "file", "location": "x"}]},
        lambda content: content | {"statements": [s | {"location": "\x1b[31m"} for s in content["statements"]]},
        lambda content: content | {"statements": [s | {"source": "god"} for s in content["statements"]]},
    ],
)
def test_damaged_provenance_is_not_used(saved, damage):
    provenance = saved.with_name(PROVENANCE)
    provenance.write_text(json.dumps(damage(json.loads(provenance.read_text()))))
    config = load(saved, root=lambda: None, allow_unused_bindings=True)
    assert "configs/recipes/tiny.gin" not in str(config.warnings)
    assert "operative_config.gin:" in config.text
