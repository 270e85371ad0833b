"""Provenance: the source, location and overridden values of every value."""

import json

import pytest
from small_model import record_of, values

from ml.config import ImportedValue, child, configurable, explain, load, select

HEADS = ImportedValue("Attention.num_heads", 2, "config.json#num_attention_heads")
EPSILON = ImportedValue("RMSNorm.epsilon", 1e-6, "config.json#rms_norm_eps")


def chain(record):
    return [(o.value, o.source, o.location) for o in record.overrode]


def test_two_equal_bindings_list_the_overridden_one_oldest_first(load_model, tmp_path):
    file = tmp_path / "base.gin"
    file.write_text("\nLinear.bias = True\n")
    config = load_model("Linear.bias = False", files=[file])
    record = record_of(config, "decoder/block_0/mixer/query", "bias")
    assert (record.value, record.source, record.location, record.explicit) == (
        "False",
        "flag",
        "--gin_bindings[1]",
        True,
    )
    assert chain(record) == [("True", "default", ""), ("True", "file", f"{file.as_posix()}:2")]


def test_a_binding_equal_to_the_default_is_explicit(load_model):
    plain, spoken = load_model(), load_model("Linear.bias = True")
    assert not record_of(plain, "decoder/block_0/mixer/query", "bias").explicit
    assert record_of(spoken, "decoder/block_0/mixer/query", "bias").explicit
    section = spoken.operative.partition("juniper.layer = 'file'")[2]
    assert "Linear.bias = True" in section
    assert plain.fingerprint != spoken.fingerprint


def test_a_suggestion_of_the_parent_has_source_parent_and_a_binding_overrides_it(load_model):
    path = "decoder/block_0/mixer/query/bias"
    suggested = record_of(load_model(), path, "weight_decay")
    assert (suggested.value, suggested.source, suggested.explicit) == ("0.0", "parent", False)
    assert chain(suggested) == [("None", "default", "")]
    bound = record_of(load_model("bias/Parameter.weight_decay = 0.1"), path, "weight_decay")
    assert (bound.value, bound.source) == ("0.1", "flag")
    assert chain(bound) == [("None", "default", ""), ("0.0", "parent", "")]


def test_an_argument_set_by_the_parent_has_source_parent(load_model):
    record = record_of(load_model(), "decoder/block_0/mixer/query", "in_features")
    assert (record.value, record.source, record.explicit) == ("32", "parent", False)


def test_imported_values_override_defaults_and_lose_to_user_bindings(load_model):
    config = load_model("mixer_norm/RMSNorm.epsilon = 1e-3", imported=[EPSILON])
    imported = record_of(config, "decoder/block_0/mlp_norm", "epsilon")
    assert (imported.value, imported.source, imported.location) == ("1e-06", "imported", "config.json#rms_norm_eps")
    assert not imported.explicit
    ours = record_of(config, "decoder/block_0/mixer_norm", "epsilon")
    assert (ours.value, ours.source) == ("0.001", "flag")
    assert chain(ours)[-1] == ("1e-06", "imported", "config.json#rms_norm_eps")


def test_an_unscoped_user_binding_overrides_a_scoped_imported_one(load_model):
    scoped = ImportedValue("mixer_norm/RMSNorm.epsilon", 1e-6, "config.json#rms_norm_eps")
    config = load_model("RMSNorm.epsilon = 1e-3", imported=[scoped])
    assert set(values(config, "RMSNorm", "epsilon").values()) == {"0.001"}


def test_imported_values_are_saved_below_those_of_the_user(load_model, tmp_path):
    from small_model import build_on_meta

    config = load_model(imported=[EPSILON])
    path = tmp_path / "operative_config.gin"
    path.write_text(config.operative)
    again = load(path, root=build_on_meta)
    assert again.operative == config.operative
    assert record_of(again, "decoder/block_0/mlp_norm", "epsilon").source == "imported"


def test_provenance_is_json_with_a_record_for_every_parameter_of_every_module(load_model):
    config = load_model("Linear.bias = False")
    provenance = json.loads(json.dumps(config.provenance()))
    assert provenance["fingerprint"] == config.fingerprint
    keys = {"path", "configurable", "parameter", "value", "source", "location", "explicit", "overrode"}
    assert all(set(record) == keys for record in provenance["records"])
    found = {(r["path"], r["parameter"]) for r in provenance["records"] if r["configurable"] == "Attention"}
    assert {p for _, p in found} >= {"num_heads", "num_kv_heads", "causal", "dropout", "rotary", "softmax_scale"}
    assert len({path for path, _ in found}) == 5


def test_no_fact_of_the_environment_is_explicit(load_model):
    for record in load_model().records():
        assert not any(word in record.parameter for word in ("rank", "world_size", "device", "host"))


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("Linear.bias", 35),
        ("query/Linear.bias", 5),
        ("block_1_to_2/query/Linear.bias", 2),
        ("query/Linear.*", None),
        ("bias", 36),  # and that of the head
        ("Attention.num_*", 10),
        ("no_such", 0),
    ],
)
def test_a_pattern_selects_like_a_binding(load_model, pattern, count):
    found = list(select(load_model("Linear.bias = False").records(), pattern))
    assert len(found) == count if count is not None else len(found) > 5


def test_explanations_list_value_source_and_overridden_values_once_for_equal_blocks(load_model):
    config = load_model("query/Linear.bias = False")
    text = explain(select(config.records(), "query/Linear.bias"))
    assert text == (
        "Linear.bias = False    # flag, --gin_bindings[1]\n"
        "    at decoder/block_0_to_4/mixer/query\n"
        "    overrode True    # default"
    )


@configurable
class Witness:
    """Records its arguments."""

    def __init__(
        self,
        size: int,
        *,
        plain: int = 1,
        suggested: int = 1,
        passed_on: int = 1,
        imported: int = 1,
        filed: int = 1,
        flagged: int = 1,
    ):
        self.given = {name: value for name, value in locals().items() if name != "self"}


@configurable
class Suspect:
    def __init__(self, *, own: int = 7):
        hints = {"suggested": 2, "imported": 2, "filed": 2, "flagged": 2}
        self.child = child("child", Witness, 3, defaults=hints, derived={"passed_on": own})


def test_records_match_the_constructor_arguments(tmp_path):
    file = tmp_path / "suspect.gin"
    file.write_text("Witness.filed = 5\nWitness.flagged = 5\nSuspect.own = 8\n")
    config = load(
        file,
        "Witness.flagged = 6",
        root=Suspect,
        imported=[ImportedValue("Witness.imported", 4, "a"), ImportedValue("Witness.filed", 4, "b")],
    )
    given = config.build(Suspect).child.given
    assert given == {
        "size": 3,
        "plain": 1,
        "suggested": 2,
        "passed_on": 8,
        "imported": 4,
        "filed": 5,
        "flagged": 6,
    }
    found = {r.parameter: r for r in config.records() if r.configurable == "Witness"}
    assert {name: record.value for name, record in found.items()} == {
        name: repr(value) for name, value in given.items()
    }
    assert {name: record.source for name, record in found.items()} == {
        "size": "parent",
        "plain": "default",
        "suggested": "parent",
        "passed_on": "parent",
        "imported": "imported",
        "filed": "file",
        "flagged": "flag",
    }
    assert [o.value for o in found["flagged"].overrode] == ["1", "2", "5"]
    assert [o.value for o in found["filed"].overrode] == ["1", "2", "4"]


def test_arguments_from_a_saved_config_are_equal_for_every_source(tmp_path):
    imported = [ImportedValue("Witness.imported", 4, "a"), ImportedValue("Witness.filed", 4, "b")]
    config = load((), "Witness.filed = 5", root=Suspect, imported=imported)
    for name, text in (("operative_config.gin", config.operative), ("config.gin", config.text)):
        (tmp_path / name).write_text(text)
        again = load(tmp_path / name, root=Suspect)
        assert again.operative == config.operative
        assert again.build(Suspect).child.given == config.build(Suspect).child.given
        later = load(tmp_path / name, "Suspect.own = 9", root=Suspect).build(Suspect).child.given
        assert later["passed_on"] == 9
