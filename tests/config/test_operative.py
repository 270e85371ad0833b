"""The operative config: complete, loadable, a fixed point, compact, and open to later bindings."""

import enum
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_model import build_on_meta, values

from ml.config import REQUIRED, ConfigError, child, configurable, load, register_constant, register_enum

MIXED = """
query/Linear.bias = False
block_3/query/Linear.bias = True
block_0_to_2/DecoderBlock.dropout = 0.25
block_1_to_3/DecoderBlock.dropout = 0.5
output/Linear.weight_initialization = @scaled_normal
wide/GatedMLP.intermediate_size = 128
block_2/DecoderBlock.mlp = @wide/GatedMLP
WIDTH = 64
GatedMLP.intermediate_size = %WIDTH
Attention.query_norm = @RMSNorm
"""


def reload(config, tmp_path, *bindings, root=build_on_meta, name="operative_config.gin"):
    path = tmp_path / name
    path.write_text(config.operative)
    return load(path, list(bindings), root=root)


@pytest.mark.parametrize("bindings", ["", MIXED], ids=["defaults", "mixed"])
def test_saving_and_loading_is_a_fixed_point_and_builds_the_same_model(load_model, tmp_path, bindings):
    config = load_model(bindings)
    again = reload(config, tmp_path)
    assert again.operative == config.operative
    assert again.fingerprint == config.fingerprint
    assert str(again.build(build_on_meta)) == str(config.build(build_on_meta))
    ours = {(r.path, r.configurable, r.parameter): r.value for r in config.records()}
    theirs = {(r.path, r.configurable, r.parameter): r.value for r in again.records()}
    assert theirs == ours
    assert reload(again, tmp_path).operative == config.operative


def test_every_default_in_effect_is_written_once_and_unscoped(load_model):
    lines = load_model("query/Linear.bias = False").operative.splitlines()
    for line in ("Linear.bias = True", "Attention.causal = True", "normal.std = 0.02", "DecoderBlock.mlp = @GatedMLP"):
        assert lines.count(line) == 1
    assert lines.count("query/Linear.bias = False") == 1


def test_a_saved_run_does_not_change_with_the_defaults_of_the_code(tmp_path):
    @configurable("Aging", module="tests.v1")
    class Before:
        def __init__(self, *, size: int = 3, part: Callable[..., Any] = dict):
            self.size = size

    old = load((), "", root=lambda: Before(part=dict))

    @configurable("Aged", module="tests.v2")
    class After:
        def __init__(self, *, size: int = 4, part: Callable[..., Any] = dict):
            self.size = size

    path = tmp_path / "operative_config.gin"
    path.write_text(old.operative.replace("Aging", "Aged"))
    assert load(path, root=lambda: After(part=dict)).build(lambda: After(part=dict)).size == 3


@pytest.mark.parametrize(
    ("binding", "check"),
    [
        ("Linear.bias = False", lambda v: set(v("Linear", "bias").values()) == {"False"}),
        (
            "Linear.weight_initialization = @ones",
            lambda v: set(v("Linear", "weight_initialization").values()) == {"@ones"},
        ),
        ("block_1/RMSNorm.epsilon = 0.5", lambda v: v("RMSNorm", "epsilon")["decoder/block_1/mlp_norm"] == "0.5"),
        ("Parameter.weight_decay = 0.5", lambda v: set(v("Parameter", "weight_decay").values()) == {"0.5"}),
        ("Parameter.initialization = @zeros", lambda v: set(v("Parameter", "initialization").values()) == {"@zeros"}),
        ("decoder/Repeat.num_blocks = 7", lambda v: len(v("DecoderBlock", "dropout")) == 7),
        ("DecoderBlock.mlp = @MLP", lambda v: len(v("MLP", "intermediate_size")) == 5),
    ],
)
def test_a_later_binding_on_a_saved_config_applies_to_every_module(load_model, tmp_path, binding, check):
    config = reload(load_model(), tmp_path, binding)
    assert check(lambda *names: values(config, *names))


def test_a_later_binding_of_a_layer_parameter_still_applies_to_its_weights(load_model, tmp_path):
    config = reload(load_model(), tmp_path, "Linear.weight_initialization = @ones")
    found = values(config, "Parameter", "initialization")
    assert {value for path, value in found.items() if path.startswith("decoder") and "norm" not in path} == {
        "@ones",
        "@zeros",
    }
    assert found["decoder/block_0/mixer/query/weight"] == "@ones"


def test_a_more_specific_user_binding_stays_more_specific(load_model, tmp_path):
    config = reload(load_model("query/Linear.bias = True"), tmp_path, "Linear.bias = False")
    found = values(config, "Linear", "bias")
    assert found["decoder/block_0/mixer/query"] == "True"
    assert found["decoder/block_0/mixer/key"] == "False"


def test_the_length_does_not_grow_with_the_number_of_equal_blocks(load_model):
    few, many = (load_model(MIXED, f"decoder/Repeat.num_blocks = {n}") for n in (5, 200))
    assert len(few.operative.splitlines()) == len(many.operative.splitlines())
    plain = [load_model(f"decoder/Repeat.num_blocks = {n}").operative for n in (2, 200)]
    assert plain[0].replace("num_blocks = 2\n", "num_blocks = 200\n") == plain[1]


def test_the_fingerprint_does_not_depend_on_the_order_of_statements(load_model):
    lines = [line for line in MIXED.strip().splitlines() if "dropout" not in line]
    assert load_model(*lines).fingerprint == load_model(*reversed(lines)).fingerprint


def test_the_fingerprint_depends_on_every_value(load_model):
    prints = [
        load_model(b).fingerprint for b in ("", "Linear.bias = False", "RMSNorm.epsilon = 1e-4", "normal.std = 0.03")
    ]
    assert len(set(prints)) == 4


@pytest.mark.parametrize("seed", ["0", "1", "12345"])
def test_another_hash_seed_and_another_order_of_imports_give_the_same_fingerprint(load_model, seed):
    imports = ["import ml.training", "import ml.data", "import ml.models"]
    program = "\n".join(
        [
            *(imports if seed == "1" else imports[::-1]),
            "import sys; sys.path.insert(0, sys.argv[1])",
            "from small_model import SMALL, build_on_meta",
            "from ml.config import load",
            "print(load((), [SMALL, sys.argv[2]], root=build_on_meta).fingerprint)",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parent), MIXED],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == load_model(MIXED).fingerprint


@register_enum
class Finish(enum.StrEnum):
    MATT = "matt"


def polish(x):
    return x


polish = configurable("polish", module="tests")(polish)


@configurable
class Holder:
    def __init__(self, *, value: Any = None, number: float = 0.0, kind: torch.dtype = torch.float32):
        self.value, self.number, self.kind = value, number, kind


@configurable
class Parent:
    def __init__(self, *, needed: int = REQUIRED, hints: dict = {"b": 1, "a": 2}):  # noqa: B006
        self.plain = child("plain", Holder)
        self.odd = child("odd", Holder, defaults={"number": float("-inf"), "value": polish})


@pytest.mark.parametrize(
    ("binding", "expected"),
    [
        ("Holder.number = %inf", float("inf")),
        ("Holder.number = %minus_inf", float("-inf")),
        ("Holder.kind = %bfloat16", torch.bfloat16),
        ("Holder.value = %Finish.MATT", Finish.MATT),
        ("Holder.value = @polish", polish),
        ("Holder.value = @Holder", Holder),
        ("Holder.value = {'z': [1, (2.5,)], 'a': {3: None, 1: True}}", {"z": [1, (2.5,)], "a": {3: None, 1: True}}),
        ("Holder.value = 'two\\nlines \\'quoted\\' # no comment'", "two\nlines 'quoted' # no comment"),
        ("Holder.value = -1e-30", -1e-30),
        ("Holder.value = []", []),
        ("Holder.value = b'bytes'", b"bytes"),
    ],
)
def test_every_kind_of_value_is_saved_and_loaded(tmp_path, binding, expected):
    config = load((), binding, root=Holder)
    again = reload(config, tmp_path, root=Holder)
    assert again.operative == config.operative
    holder = again.build(Holder)
    found = next(v for v in (holder.value, holder.number, holder.kind) if v not in (None, 0.0, torch.float32))
    assert found == expected
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)


def test_nan_is_saved_and_loaded(tmp_path):
    config = load((), "Holder.number = %nan", root=Holder)
    again = reload(config, tmp_path, root=Holder)
    assert again.operative == config.operative
    assert again.build(Holder).number != again.build(Holder).number


def test_suggestions_of_a_parent_are_saved_for_their_children_and_stay_weak(tmp_path):
    config = load((), "Parent.needed = 1", root=Parent)
    assert "\nParent/odd/Holder.number = %math.minus_inf\n" in config.operative
    again = reload(config, tmp_path, root=Parent)
    assert again.operative == config.operative
    assert (again.build(Parent).odd.number, again.build(Parent).plain.number) == (float("-inf"), 0.0)
    later = reload(config, tmp_path, "Holder.number = 5.0", root=Parent).build(Parent)
    assert (later.odd.number, later.plain.number) == (5.0, 5.0)


def test_a_value_without_text_form_is_an_error_that_names_the_parameter():
    @configurable(module="tests")
    class Stubborn:
        def __init__(self, *, value: Any = {1, 2}):  # noqa: B006
            self.value = value

    with pytest.raises(
        ConfigError, match=r"Stubborn.value \(its default\): \{1, 2\} of type builtins.set cannot be written"
    ):
        load((), "", root=Stubborn)


def test_a_constant_has_one_name():
    register_constant("tests.SPECIAL", (1, "special"))
    register_constant("tests.SPECIAL", (1, "special"))
    config = load((), "Holder.value = %SPECIAL", root=Holder)
    assert "Holder.value = %tests.SPECIAL" in config.operative


def test_config_gin_has_only_explicit_bindings_and_loads_to_the_same_run(load_model, tmp_path):
    config = load_model(MIXED)
    (tmp_path / "config.gin").write_text(config.text)
    again = load(tmp_path / "config.gin", root=build_on_meta)
    assert again.operative == config.operative
    assert "GatedMLP.intermediate_size = %WIDTH" in config.text
    assert "Attention.causal" not in config.text
