"""Operative configs of earlier releases load as the same configuration."""

import re

import pytest

import ml
from ml.config import ConfigError, difference, migrations
from ml.config.migrations import Added, Removed, Renamed, migrated, without_additions


@pytest.fixture(scope="module")
def present():
    bindings = [
        "Attention.window_size = 7",
        "block_1/Attention.window_size = 5",
        "DecoderBlock.mixer = @other/Attention",
    ]
    return ml.load("recipes/tiny.gin", bindings).operative


def load_old(tmp_path, text):
    file = tmp_path / "operative_config.gin"
    file.write_text(text)
    return ml.load(file)


def test_a_renamed_parameter_has_its_values_in_every_scope(present, tmp_path, monkeypatch):
    old = re.sub(r"Attention\.window_size\b", "Attention.local_window", present)
    assert old.count("Attention.local_window") == 2
    with pytest.raises(ConfigError, match="local_window"):
        load_old(tmp_path, old)
    monkeypatch.setattr(migrations, "CHANGES", (Renamed("Attention.local_window", "Attention.window_size"),))
    assert load_old(tmp_path, old).operative == present


def test_a_renamed_configurable_has_another_name_as_a_value_and_as_a_parent(present, tmp_path, monkeypatch):
    old = re.sub(r"\bRMSNorm\b", "RootMeanSquareNorm", present)
    assert "normalization = @RootMeanSquareNorm\n" in old
    assert "\nRootMeanSquareNorm/weight/" in old
    monkeypatch.setattr(migrations, "CHANGES", (Renamed("RootMeanSquareNorm", "RMSNorm"),))
    assert load_old(tmp_path, old).operative == present


def test_a_removed_parameter_with_its_only_value_is_no_difference_and_with_another_an_error(
    present, tmp_path, monkeypatch
):
    monkeypatch.setattr(migrations, "CHANGES", (Removed("Attention.flash", "True", "use release 0.1"),))
    line = present.split("\n").index("Attention.causal = True")

    def with_lines(*added):
        lines = present.split("\n")
        return "\n".join([*lines[:line], *added, *lines[line:]])

    assert load_old(tmp_path, with_lines("Attention.flash = True")).operative == present
    assert load_old(tmp_path, with_lines("block_1/Attention.flash = %juniper.left_out")).operative == present
    wrong = with_lines("Attention.flash = True", "block_1/Attention.flash = False")
    place = rf"operative_config\.gin:{line + 2}: Attention\.flash was removed, .* use release 0\.1"
    with pytest.raises(ConfigError, match=place) as caught:
        load_old(tmp_path, wrong)
    assert len(caught.value.problems) == 1


def test_an_added_parameter_keeps_the_behavior_of_the_release_that_lacked_it(present, tmp_path, monkeypatch):
    old = present.replace("AdamW.epsilon = 1e-08\n", "")
    assert load_old(tmp_path, old).operative == present  # its default
    monkeypatch.setattr(migrations, "CHANGES", (Added("AdamW.epsilon", "1e-06"), Added("Lion.betas", "(0.5, 0.5)")))
    assert load_old(tmp_path, old).operative == present.replace("AdamW.epsilon = 1e-08", "AdamW.epsilon = 1e-06")
    assert load_old(tmp_path, present).operative == present


def test_a_run_that_lacks_an_added_parameter_is_resumed_from_its_own_files_with_that_behavior(present, monkeypatch):
    old = present.replace("AdamW.epsilon = 1e-08\n", "")
    monkeypatch.setattr(migrations, "CHANGES", (Added("AdamW.epsilon", "1e-06"), Added("Lion.betas", "(0.5, 0.5)")))
    config = ml.load("recipes/tiny.gin", ["Attention.window_size = 7"])
    resumed = config.with_defaults_of(old)
    assert difference(config.operative, resumed.operative) == ["- AdamW.epsilon = 1e-08", "+ AdamW.epsilon = 1e-06"]
    assert config.with_defaults_of(present) is config
    chosen = ml.load("recipes/tiny.gin", ["AdamW.epsilon = 1e-07"]).with_defaults_of(old)
    assert "AdamW.epsilon = 1e-07" in chosen.operative


def test_only_defaults_of_parameters_that_were_not_listed_are_additions(present):
    lines = present.split("\n")
    for removed in ("AdamW.epsilon = 1e-08", "Attention.window_size = 7"):
        old = "\n".join(line for line in lines if line != removed)
        is_default = removed.startswith("AdamW")
        expected = [] if is_default else [f"+ {removed}"]
        assert difference(old, without_additions(present, old)) == expected
    other = present.replace("AdamW.epsilon = 1e-08", "AdamW.epsilon = 1e-07")
    changed = ["- AdamW.epsilon = 1e-07", "+ AdamW.epsilon = 1e-08"]
    assert difference(other, without_additions(present, other)) == changed


def test_the_released_changes_leave_a_present_config_as_it_is():
    for recipe in ("base.gin", "recipes/lora.gin"):
        operative = ml.load(recipe).operative
        assert migrated(operative) == (operative, [])
