"""Configurations in Python: Python values as bindings, records, copies, pickling, redefined classes."""

import copy
import hashlib
import importlib
import math
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
from small_model import record_of

import ml
from ml.config import child, configurable, explain, load
from ml.errors import UserError
from ml.layers import MLP, Attention, silu


def test_python_values_are_bindings_with_their_key_as_location():
    config = ml.load(
        "recipes/tiny.gin",
        {
            "Linear.bias": False,
            "block_1/query/Linear.bias": True,
            "block_1/DecoderBlock.mlp": MLP,
            "MLP.activation": silu,
            "PATIENCE": 7,
            "Trainer.max_grad_norm": math.inf,
        },
        allow_unused_bindings=True,
    )
    record = config.value("decoder/block_1/mixer/query", "Linear.bias")
    assert (record.value, record.source, record.location) == ("True", "flag", "bindings['block_1/query/Linear.bias']")
    assert [(o.value, o.location) for o in record.overrode][-1] == ("False", "bindings['Linear.bias']")
    assert config.value("", "Trainer.max_grad_norm").value == "%math.inf"
    assert type(ml.build(config).decoder.block_1.mlp).__name__ == "MLP"
    assert "'PATIENCE'" in config.warnings[0].message


def test_python_values_and_text_are_equivalent():
    text = ml.load("recipes/tiny.gin", ["Linear.bias = False", "Trainer.max_grad_norm = 2"])
    assert ml.load("recipes/tiny.gin", {"Linear.bias": False, "Trainer.max_grad_norm": 2}) == text
    assert ml.load("recipes/tiny.gin", ["Linear.bias = False", {"Trainer.max_grad_norm": 2}]) == text


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        ({"Linear.bias": 1}, "bindings['Linear.bias']: Linear.bias must be bool, not 1 (int)"),
        ({"Linear.bais": True}, "bindings['Linear.bais']: Linear has no parameter 'bais'; did you mean 'bias'?"),
        ({"Linear.bias = True\nX.y": 1}, "is not a key such as 'scope/Name.parameter'"),
        ({3: 1}, "bindings[3]: 3 is not a key"),
        (
            {"DecoderBlock.mixer": frozenset},
            "bindings['DecoderBlock.mixer']: <class 'frozenset'> of type builtins.type",
        ),
        ({"Trainer.max_grad_norm": torch.ones(1)}, "bindings['Trainer.max_grad_norm']: tensor([1.]) of type torch.T"),
    ],
    ids=str,
)
def test_an_error_of_a_python_value_has_its_key(bindings, message):
    with pytest.raises(ml.ConfigError) as caught:
        ml.load("recipes/tiny.gin", bindings)
    assert any(message in str(problem) for problem in caught.value.problems), caught.value


def test_a_single_value_has_its_record(load_model):
    config = load_model("query/Linear.bias = False")
    assert config.value("decoder/block_3/mixer/query", "Linear.bias") == record_of(
        config, "decoder/block_3/mixer/query", "bias"
    )


@pytest.mark.parametrize(
    ("path", "name", "message"),
    [
        ("decoder/block_3/mixer/qeury", "Linear.bias", "did you mean 'decoder/block_3/mixer/query'?"),
        ("decoder/block_3/mixer/query", "Linear.bais", "did you mean 'Linear.bias'?"),
        ("decoder/block_3/mixer/query", "RMSNorm.epsilon", "where Linear is built"),
        ("", "Linear", "there is no Linear at ''"),
    ],
)
def test_a_missing_value_is_an_error_with_a_suggestion(load_model, path, name, message):
    with pytest.raises(UserError, match="is built") as caught:
        load_model().value(path, name)
    assert message in str(caught.value)


IN_ANOTHER_PROCESS = """
import hashlib, pickle, sys
config = pickle.load(open(sys.argv[1], 'rb'))
import ml
from ml.config import explain
weights = b''.join(p.detach().numpy().tobytes() for p in ml.build(config).parameters())
print(config.fingerprint)
print(hashlib.sha256(weights).hexdigest())
print(hashlib.sha256(repr(list(config.records())).encode()).hexdigest())
print(hashlib.sha256(explain(list(config.records())).encode()).hexdigest())
print(hashlib.sha256(config.text.encode()).hexdigest())
"""


def test_a_pickled_configuration_is_equal_in_another_process(tmp_path):
    config = ml.load("recipes/tiny.gin", {"block_1/DecoderBlock.mixer": Attention, "Trainer.max_grad_norm": math.inf})
    weights = b"".join(p.detach().numpy().tobytes() for p in ml.build(config).parameters())
    texts = [repr(list(config.records())), explain(list(config.records())), config.text]
    expected = [config.fingerprint, *(hashlib.sha256(b).hexdigest() for b in (weights, *map(str.encode, texts)))]
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(config))
    (tmp_path / "other.py").write_text(IN_ANOTHER_PROCESS)
    command = [sys.executable, "other.py", "config.pickle"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.split() == expected, done.stderr


def test_a_copy_is_the_same_object(load_model):
    config = load_model("Linear.bias = False")
    assert copy.deepcopy(config).operative == copy.copy(config).operative == config.operative
    assert copy.deepcopy({"key": config})["key"].text == config.text


MODULE = """
from ml.config import configurable

@configurable
class Changing:
    version = {version}
    def __init__(self, size: int, *, {parameter}: int = {version}):
        self.{parameter} = {parameter}

@configurable
def changing_function():
    return {version}
"""


@pytest.fixture
def changing(tmp_path, monkeypatch):
    """Writes the module `changing_layers` and imports or reloads it."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(version: int, parameter: str = "number"):
        (tmp_path / "changing_layers.py").write_text(
            MODULE.format(version=version, parameter=parameter) + "#" * version
        )
        importlib.invalidate_caches()
        loaded = sys.modules.get("changing_layers")
        return importlib.reload(loaded) if loaded else importlib.import_module("changing_layers")

    yield write
    sys.modules.pop("changing_layers", None)


@configurable
class Keeper:
    def __init__(self, *, kept: Callable[..., object], made: Sequence[int] = ()):
        self.kept, self.made = child("kept", kept, 1), made


def load_keeper(*bindings: str):
    return load((), bindings, root=Keeper)


def test_the_latest_definition_of_a_class_is_used(changing):
    changing(1)
    bindings = ["Keeper.kept = @Changing", "Keeper.made = [@changing_function()]"]
    before = load_keeper(*bindings)
    assert (before.build(Keeper).kept.version, before.build(Keeper).made) == (1, [1])
    changing(2, "count")
    after = load_keeper(*bindings, "Changing.count = 5")
    assert (after.build(Keeper).kept.count, after.build(Keeper).made) == (5, [2])
    with pytest.raises(ValueError, match="Changing has no parameter 'number'"):
        load_keeper(*bindings, "Changing.number = 5")
    with pytest.raises(ml.ConfigError, match="Changing, changing_function was redefined since this configuration"):
        before.build(Keeper)


def test_a_default_with_the_old_class_refers_to_the_new_one(changing):
    old = changing(1).Changing

    @configurable(module="tests")
    class Remembering:
        def __init__(self, *, part: Callable[..., old] = old):
            self.part = child("part", part, 1)

    changing(2)
    config = load((), (), root=Remembering)
    assert config.build(Remembering).part.version == 2
    saved = load((), config.operative, root=Remembering)
    assert saved.operative == config.operative
    assert saved.build(Remembering).part.version == 2


def test_different_code_with_the_same_full_name_is_an_error():
    @configurable("Same", module="tests")
    class One:
        pass

    with pytest.raises(ValueError, match="already exists"):

        @configurable("Same", module="tests")
        class Other:
            pass
