"""Random sequences of lines and operations against a reference interpreter, also on top of saved configurations."""

import copy
import random
from typing import Any

import pytest

from ml.config import ConfigError, child, configurable, load

DEFAULTS = {"items": [1, 2], "table": {"a": 1, "b": [2]}}


@configurable(module="tests.operations_property")
class Purse:
    def __init__(self, *, items: list[Any] = DEFAULTS["items"], table: dict[str, Any] = DEFAULTS["table"]):
        self.items, self.table = items, table


@configurable(module="tests.operations_property")
class Purses:
    def __init__(self):
        self.places = {"near": child("near", Purse), "far": child("far", Purse)}


class Wrong(Exception):
    """Raised for an invalid line."""


class Interpreter:
    """Reference semantics in plain Python: a list of the values set for each key."""

    def __init__(self):
        self.lines: dict[tuple[str, str], list[Any]] = {}

    def held(self, scope: str, name: str) -> Any:
        own = self.lines.get((scope, name))
        if own:
            return copy.deepcopy(own[-1])
        if scope:
            raise Wrong
        return copy.deepcopy(DEFAULTS[name])

    def run(self, scope: str, name: str, keys: list[Any], operator: str, value: Any) -> None:
        """Executes one line; `value` is None for `%juniper.unset`."""
        if not keys and operator == "=":
            if value is None and not self.lines.pop((scope, name), None):
                raise Wrong
            if value is not None:
                self.lines.setdefault((scope, name), []).append(value)
            return
        held = [self.held(scope, name)]
        inside, last = held, 0
        for key in keys[: len(keys) if operator != "=" else -1]:
            inside, last = inside[last], key
            self.check(inside, key)
        if operator == "=":
            inside, last = inside[last], keys[-1]
            if type(inside) is not dict or value is None:
                self.check(inside, last)
            if value is None:
                del inside[last]
            else:
                inside[last] = value
        else:
            target = inside[last]
            if type(target) is not list:
                raise Wrong
            for item in value:
                if operator == "-=" and item not in target:
                    raise Wrong
                target.append(item) if operator == "+=" else target.remove(item)
        self.lines.setdefault((scope, name), []).append(held[0])

    @staticmethod
    def check(inside: Any, key: Any) -> None:
        known = inside if type(inside) is dict else range(-len(inside), len(inside)) if type(inside) is list else ()
        if key not in known:
            raise Wrong

    def values(self) -> dict[str, dict[str, Any]]:
        return {
            place: {
                name: (self.lines.get((place, name)) or self.lines.get(("", name)) or [DEFAULTS[name]])[-1]
                for name in DEFAULTS
            }
            for place in ("near", "far")
        }


def line(draw: random.Random) -> tuple:
    """Returns a random line, usually one that fits the current values."""
    scope, name = draw.choice(["", "", "near"]), draw.choice(list(DEFAULTS))
    kind = draw.choice(["set", "unset", "entry", "entry", "remove", "grow", "grow", "shrink"])
    items = [draw.choice([1, 2, 3, "x"]) for _ in range(draw.randint(1, 2))]
    if kind == "set":
        return scope, name, [], "=", items if name == "items" else {draw.choice("ab"): items, "c": 4}
    if kind == "unset":
        return scope, name, [], "=", None
    keys = [draw.choice([0, -1, 1, 5]) if name == "items" else draw.choice("abcd")]
    if name == "table" and draw.random() < 0.3:
        keys.append(draw.choice([0, 3]))
    if kind in ("entry", "remove"):
        return scope, name, keys, "=", None if kind == "remove" else draw.choice(items)
    return scope, name, keys if name == "table" else [], "+=" if kind == "grow" else "-=", items


def text(scope: str, name: str, keys: list[Any], operator: str, value: Any) -> str:
    prefix = f"{scope}/" if scope else ""
    brackets = "".join(f"[{key!r}]" for key in keys)
    return f"{prefix}Purse.{name}{brackets} {operator} {'%juniper.unset' if value is None else repr(value)}"


def values_of(config) -> dict[str, dict[str, Any]]:
    return {place: vars(bag) for place, bag in config.build(Purses).places.items()}


def draw_lines(seed: int, count: int) -> tuple[list[str], list[int], Interpreter]:
    """Returns lines, the indices of the invalid ones, and an interpreter that executed the others."""
    draw, interpreter = random.Random(seed), Interpreter()
    lines, wrong = [], []
    for number in range(count):
        drawn = line(draw)
        lines.append(text(*drawn))
        try:
            interpreter.run(*copy.deepcopy(drawn))
        except Wrong:
            wrong.append(number)
    return lines, wrong, interpreter


@pytest.mark.parametrize("seed", range(150))
def test_a_sequence_matches_the_reference_interpreter(seed):
    lines, wrong, interpreter = draw_lines(seed, 12)
    if wrong:
        with pytest.raises(ConfigError) as caught:
            load((), lines, root=Purses)
        places = {str(problem.location) for problem in caught.value.problems}
        assert places == {f"--gin_bindings[{number}]" for number in wrong}, lines
    right = [text for number, text in enumerate(lines) if number not in wrong]
    config = load((), right, root=Purses)
    assert values_of(config) == interpreter.values(), right
    assert load((), config.text, root=Purses).operative == config.operative, config.text


@pytest.mark.parametrize("seed", range(150))
def test_a_sequence_on_a_saved_configuration_equals_the_sequence_on_the_original(tmp_path, seed):
    lines, wrong, interpreter = draw_lines(1000 + seed, 12)
    right = [text for number, text in enumerate(lines) if number not in wrong]
    for saved_after in sorted({0, len(right) // 2, len(right) - 1}):
        saved = tmp_path / "operative_config.gin"
        saved.write_text(load((), right[:saved_after], root=Purses).operative)
        config = load(saved, right[saved_after:], root=Purses)
        assert values_of(config) == interpreter.values(), (right, saved_after)
        assert config.operative == load((), right, root=Purses).operative
    if wrong:
        before = [text for number, text in enumerate(lines[: wrong[0]]) if number not in wrong]
        saved.write_text(load((), before, root=Purses).operative)
        with pytest.raises(ConfigError):
            load(saved, lines[wrong[0]], root=Purses)
