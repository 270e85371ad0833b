"""Arithmetic in values: `%hidden_size * 4`, with Python's results as the reference."""

import random
import re
from typing import Any

import pytest
from small_model import values

from ml.config import ConfigError, configurable, load


@configurable(module="tests.arithmetic")
class Figure:
    def __init__(self, *, value: Any = None, whole: int = 0):
        self.value, self.whole = value, whole


def value_of(*bindings: str) -> Any:
    return load((), list(bindings), root=Figure).build(Figure).value


def expression(draw: random.Random, depth: int) -> str:
    """Returns a random expression over the macros a, b and c in Python syntax."""
    kind = draw.choice(["leaf", "leaf", "binary", "binary", "binary", "unary", "power", "brackets"])
    if depth == 0 or kind == "leaf":
        return draw.choice(["a", "b", "c", "3", "2.5", "7", "1e-3"])
    inner = expression(draw, depth - 1)
    if kind == "unary":
        return f"{draw.choice('+-')}{inner}"
    if kind == "brackets":
        return f"({inner})"
    if kind == "power":
        return f"{inner} ** {draw.choice(['2', '-1', 'a', '(b - 4)'])}"
    space = draw.choice(["", " "])
    return f"{inner}{space}{draw.choice(['+', '-', '*', '/', '//', '%'])}{space}{expression(draw, depth - 1)}"


@pytest.mark.parametrize("seed", range(10))
def test_an_expression_has_the_value_of_python(seed):
    draw = random.Random(seed)
    macros = {"a": 5, "b": 2, "c": 0.5}
    lines = [f"{name} = {value}" for name, value in macros.items()]
    compared = 0
    for _ in range(40):
        text = expression(draw, 3)
        written = re.sub(r"\b[abc]\b", lambda found: f"%{found[0]}", text)
        used = [line for line in lines if f"%{line[0]}" in written]
        try:
            expected = eval(text, {}, macros)
            is_small = isinstance(expected, int | float) and abs(expected) < 2**1024
        except (ArithmeticError, OverflowError):
            is_small = False
        if not is_small:
            with pytest.raises(ConfigError, match=r"divides by zero|is too large|has no real value"):
                value_of(*used, f"Figure.value = {written}")
            continue
        config = load((), [*used, f"Figure.value = {written}"], root=Figure)
        found = config.build(Figure).value
        assert (found, type(found)) == (expected, type(expected)), written
        assert load((), config.text, root=Figure).operative == config.operative, config.text
        assert f"Figure.value = {expected!r}\n" in config.operative
        compared += 1
    assert compared > 20


WRITTEN = {
    "2 * 3 + 4": 10,
    "-2 ** 2": -4,
    "2 ** 3 ** 2": 512,
    "2 ** -1": 0.5,
    "10 - 3 - 2": 5,
    "100 / 10 / 2": 5.0,
    "(1 +\n    2  # two\n    ) * 3": 9,
    "[%W * 2, {'a': -%W}, (%W // 3,)]": [16, {"a": -8}, (2,)],
    "{%W + 1: %W}": {9: 8},
    "%W%3": 2,
    "%W/4": 2.0,
    "%scoped/W/4": 4.0,
    "%W * %HALF": 4.0,
    "1 - -1": 2,
    "%math.inf - 1": float("inf"),
}


@pytest.mark.parametrize(("text", "expected"), WRITTEN.items(), ids=WRITTEN)
def test_precedence_parentheses_and_places(text, expected):
    macros = {"%W": "W = 8", "%HALF": "HALF = 1 / 2", "%scoped/W": "scoped/W = 16"}
    used = [line for name, line in macros.items() if re.search(rf"{name}\b(?!/W)", text)]
    found = value_of(*used, f"Figure.value = {text}")
    assert (found, type(found)) == (expected, type(expected))


def test_a_macro_in_arithmetic_is_overridden_by_a_flag(load_model):
    lines = ["WIDTH = 16\nGatedMLP.intermediate_size = %SIZE\nSIZE = %WIDTH * 4", "WIDTH = 32"]
    config = load_model(*lines)
    assert set(values(config, "GatedMLP", "intermediate_size").values()) == {"128"}
    (record, *_) = [r for r in config.records() if r.parameter == "intermediate_size"]
    assert record.location == "--gin_bindings[1]:2 via --gin_bindings[2]"
    assert [origin.value for origin in record.overrode] == ["None", "64"]


MISTAKES = {
    "1 // 0": "1 // 0 divides by zero",
    "%W % 0": "8 % 0 divides by zero",
    "0.0 ** -1": "0.0 ** -1 divides by zero",
    "10 ** 10 ** 10": "10 ** 10000000000 is too large",
    "2 ** 1025 * 1": "is too large",
    "1e308 * 10": "1e+308 * 10 is too large",
    "10.0 ** 400": "10.0 ** 400 is too large",
    "(-8) ** 0.5": "(-8) ** 0.5 has no real value",
    "'a' * 3": "'a' * 3 takes numbers, not 'a' (str)",
    "True + 1": "True + 1 takes numbers, not True (bool)",
    "-None": "None",
    "[1] + [2]": "takes numbers, not [1] (list)",
    "@Figure + 1": "@Figure + 1 takes numbers, not the reference @Figure",
    "%NOTHING * 2": "there is no macro or constant %NOTHING",
    "%W *": "cannot be read: Unable to parse value.",
    "* %W": "cannot be read: Unable to parse value.",
    "%W %W": "W is not a value: write 'W' for a string",
    "+".join(["1"] * 500): "cannot be read: More than 200 operators in one statement.",
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.items(), ids=[text[:20] for text in MISTAKES])
def test_a_mistake_is_one_message_with_its_place(text, message):
    bindings = ["W = 8"] * ("%W" in text) + [f"Figure.value = {text}"]
    with pytest.raises(ConfigError) as caught:
        load((), bindings, root=Figure)
    found = [str(p) for p in caught.value.problems if "macro 'W'" not in str(p)]
    assert len(found) == 1
    assert found[0].startswith(f"--gin_bindings[{len(bindings) - 1}]: ")
    assert message in found[0]


def test_a_true_division_for_an_integer_has_a_hint():
    with pytest.raises(ConfigError, match=r"Figure.whole must be int, not 4.0 \(float\); use // for integer"):
        load((), ["W = 8", "Figure.whole = %W / 2"], root=Figure)
