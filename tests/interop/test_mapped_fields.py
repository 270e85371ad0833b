"""Each field of a config.json with a place in the model changes it, or is refused; the fields are found in folders."""

import json

import pytest
import transformers
from hub_cases import CASES
from hub_models import SIZES, oracle_of

from ml.config import ConfigError
from ml.interop.comparison import describe
from ml.interop.errors import InteropError
from ml.interop.expressing import express, model_of
from ml.interop.families import families, family_of
from ml.interop.fields import ConfigFields
from ml.interop.importing import values_of

REFUSED_BY_DEFAULT = ("llava",)  # has a vision tower with a class token, which attends


def leaves(value, path=()):
    """Yields the places of all plain values in nested dicts; lists are values."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves(inner, (*path, name))
    else:
        yield path


def changed(value):
    """Other values for a value, of the same type first."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value * 2, value + 1, None]
    if isinstance(value, float):
        return [value * 2 + 0.5, None]
    if isinstance(value, str):
        return [f"{value}_", "relu", "gelu"]
    if isinstance(value, list) and value:
        return [value[::-1], value[:1] * len(value), value[:-1], [f"{value[0]}_", *value[1:]]]
    if value is None or value == []:
        return [True, 5, 0.5, [0]]
    return [None]


def with_value(config, path, value):
    """Returns a copy of nested dicts with one value changed."""
    head, *rest = path
    return {**config, head: with_value(config[head], rest, value) if rest else value}


def has_effect(config, path, value, before) -> bool:
    try:
        values = values_of(with_value(config, path, value))
        return describe(model_of(values), of_training=True) != before
    except (InteropError, ConfigError):
        return True


def at(config, path):
    for name in path:
        config = config[name]
    return config


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_mapped_field_changes_the_model_or_is_refused(case):
    config = json.loads(oracle_of(*case).config.to_json_string())
    before = describe(model_of(values_of(config)), of_training=True)
    fields = ConfigFields(config)
    for row in family_of(config).rows:
        list(row.imported(fields))
    mapped = family_of(config).fields - fields.idle
    ignored = [
        ".".join(path)
        for path in leaves({name: value for name, value in config.items() if name in mapped})
        if not any(".".join(path).startswith(name) for name in fields.idle)
        and not any(has_effect(config, path, other, before) for other in changed(at(config, path)))
    ]
    assert not ignored


def bindings_of(config):
    return {value.key: repr(value.value) for value in values_of(config)}


def test_an_absent_field_means_the_default_of_transformers():
    """A config.json without one field is another spelling of the one with its default, or the field is required."""
    wrong = []
    for family in families():
        for kind in family.architectures:
            config = json.loads(transformers.AutoConfig.for_model(kind).to_json_string(use_diff=False))
            try:
                expected = bindings_of(config)
            except InteropError:
                assert kind in REFUSED_BY_DEFAULT
                continue
            for name in config.keys() & family.fields:
                try:
                    found = bindings_of({other: value for other, value in config.items() if other != name})
                except InteropError as error:
                    assert str(error) == f"config.json has no {name}"  # noqa: PT017
                    continue
                wrong += [f"{kind}: {name}: {key}" for key in expected if found.get(key) != expected[key]]
    assert not wrong


def test_every_family_has_a_case():
    tried = {json.loads(oracle_of(*case).config.to_json_string())["model_type"] for case in CASES.values()}
    assert {kind for family in families() for kind in family.architectures} == tried
    assert len({SIZES[name] for name in ("hidden_size", "intermediate_size", "vocab_size")}) == 3


@pytest.mark.parametrize("limits", [(0.1, 0.4), (0.0, 0.6)])
def test_a_changed_limit_of_time_steps_is_not_lost_by_an_export(limits):
    """A parameter that is several numbers is compared like any other."""
    config = json.loads(oracle_of(*CASES["Mamba-2, odd, biases, limits"]).config.to_json_string())
    model = model_of(values_of(config))
    for block in model.decoder.blocks:
        block.mixer.dt_limit = limits
    assert express(model, config).config["time_step_limit"] == list(limits)
