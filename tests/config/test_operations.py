"""Unset lines, entry assignment and removal, list operations: values, places, provenance, mistakes."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from small_model import record_of, values

from ml.cli.entry import gin_flags_as_bindings
from ml.config import ConfigError, ImportedValue, child, configurable, explain, load


@configurable(module="tests.operations")
def crimson() -> None: ...


@configurable(module="tests.operations")
def azure() -> None: ...


@configurable(module="tests.operations")
class Drawer:
    def __init__(
        self,
        *,
        parts: dict[str, Callable[..., Any]] = {"r": crimson},  # noqa: B006
        items: list[Any] | tuple[Any, ...] = (1, 2),
        nested: dict[str, Any] = {"a": [1, 2], "b": {"c": 3}},  # noqa: B006
        numbers: list[int] | None = None,
        size: int = 1,
    ):
        self.parts, self.items, self.nested, self.numbers, self.size = parts, items, nested, numbers, size


@configurable(module="tests.operations")
class Cabinet:
    def __init__(self):
        self.left = child("left", Drawer)
        self.right = child("right", Drawer, defaults={"size": 5})


def drawer(*bindings: str, **options: Any) -> Drawer:
    return load((), list(bindings), root=Cabinet, **options).build(Cabinet).left


RESULTS = {
    "an entry is set": (["Drawer.parts['r'] = @azure"], "parts", {"r": azure}),
    "an entry is added at the end": (["Drawer.parts['b'] = @azure"], "parts", {"r": crimson, "b": azure}),
    "an entry keeps its place": (["Drawer.nested['a'] = 0"], "nested", {"a": 0, "b": {"c": 3}}),
    "an entry is removed": (["Drawer.nested['a'] = %juniper.unset"], "nested", {"b": {"c": 3}}),
    "an entry of an entry": (["Drawer.nested['b']['c'] = 4"], "nested", {"a": [1, 2], "b": {"c": 4}}),
    "a list in a dict grows": (["Drawer.nested['a'] += [3]"], "nested", {"a": [1, 2, 3], "b": {"c": 3}}),
    "a key that is a macro": (["KEY = 'a'\nDrawer.nested[%KEY] = 0"], "nested", {"a": 0, "b": {"c": 3}}),
    "a tuple grows and stays a tuple": (["Drawer.items += [3]"], "items", (1, 2, 3)),
    "a list grows and stays a list": (["Drawer.items = [1]", "Drawer.items += (2, 3)"], "items", [1, 2, 3]),
    "a list grows by a macro": (["MORE = [3]\nDrawer.items += %MORE"], "items", (1, 2, 3)),
    "a list that a macro holds grows": (
        ["ALL = [3]\nDrawer.items = %ALL\nDrawer.items += [%N]\nN = 4"],
        "items",
        [3, 4],
    ),
    "a list shrinks": (["Drawer.items -= [1]"], "items", (2,)),
    "once for each": (["Drawer.items = [1, 2, 1, 1]", "Drawer.items -= [1, 1]"], "items", [2, 1]),
    "True is not 1": (["Drawer.items = [1, True]", "Drawer.items -= [True]"], "items", [1]),
    "a position": (["Drawer.items[0] = 'x'"], "items", ("x", 2)),
    "a position from the end": (["Drawer.items[-1] = 'x'"], "items", (1, "x")),
    "a position removed": (["Drawer.items[0] = %juniper.unset"], "items", (2,)),
    "a reference removed": (["Drawer.items = [@crimson, @azure]", "Drawer.items -= [@crimson]"], "items", [azure]),
    "arithmetic": (["N = 4", "Drawer.items += [%N * 2]"], "items", (1, 2, 8)),
    "in a block": (["Drawer:\n  items += [3]\n  parts['b'] = @azure\n  size = 3"], "items", (1, 2, 3)),
    "in order": (["Drawer.items += [3]", "Drawer.items = [7]", "Drawer.items += [8]"], "items", [7, 8]),
    "a scoped line": (["left/Drawer.items = [5]", "left/Drawer.items += [6]"], "items", [5, 6]),
    "unset": (["Drawer.size = 3", "Drawer.size = %juniper.unset"], "size", 1),
    "unset takes all earlier lines": (
        ["Drawer.size = 3", "Drawer.size = 4", "Drawer.size = %juniper.unset"],
        "size",
        1,
    ),
    "unset, then set": (["Drawer.size = 3", "Drawer.size = %juniper.unset", "Drawer.size = 4"], "size", 4),
    "unset leaves what is less specific": (
        ["Drawer.size = 3", "left/Drawer.size = 4", "left/Drawer.size = %juniper.unset"],
        "size",
        3,
    ),
    "unset leaves what is more specific": (
        ["left/Drawer.size = 4", "Drawer.size = 3", "Drawer.size = %juniper.unset"],
        "size",
        4,
    ),
    "unset of a macro's reader": (["N = 3\nDrawer.size = %N", "Drawer.size = %juniper.unset"], "size", 1),
    "unset, then an entry of the default": (
        ["Drawer.items = [7]", "Drawer.items = %juniper.unset", "Drawer.items += [3]"],
        "items",
        (1, 2, 3),
    ),
}


@pytest.mark.parametrize(("bindings", "parameter", "expected"), RESULTS.values(), ids=RESULTS)
def test_the_value_after_operations(bindings, parameter, expected):
    config = load((), bindings, root=Cabinet)
    found = getattr(config.build(Cabinet).left, parameter)
    assert (found, type(found)) == (expected, type(expected))
    if isinstance(expected, dict):
        assert list(found) == list(expected)
    assert load((), config.operative, root=Cabinet).operative == config.operative
    assert load((), config.text, root=Cabinet).operative == config.operative


def test_after_an_unset_the_suggestion_of_the_parent_applies():
    shelf = load((), ["Drawer.size = 3", "Drawer.size = %juniper.unset"], root=Cabinet).build(Cabinet)
    assert (shelf.left.size, shelf.right.size) == (1, 5)


def test_after_an_unset_the_imported_value_applies_and_operations_extend_it():
    imported = [
        ImportedValue("Drawer.size", 9, "config.json#size"),
        ImportedValue("Drawer.items", [7], "config.json#items"),
    ]
    made = drawer("Drawer.size = 3", "Drawer.size = %juniper.unset", "Drawer.items += [8]", imported=imported)
    assert (made.size, made.items) == (9, [7, 8])


MISTAKES = {
    "nothing to unset": ("Drawer.size = %juniper.unset", "no line before this one sets Drawer.size"),
    "nothing to unset in this scope": (
        "Drawer.size = 3\nlft/Drawer.size = %juniper.unset",
        "no line before this one sets lft/Drawer.size; did you mean 'Drawer.size'?",
    ),
    "unset twice": ("Drawer.size = 3\nDrawer.size = %juniper.unset\nDrawer.size = %juniper.unset", "nothing to unset"),
    "unset before": ("Drawer.size = %juniper.unset\nDrawer.size = 3", "nothing to unset"),
    "unset of a typo": ("Drawer.sise = %juniper.unset", "Drawer has no parameter 'sise'; did you mean 'size'?"),
    "unset through a macro": ("N = %juniper.unset\nDrawer.size = %N", "%juniper.unset must be the whole value"),
    "unset in a list": ("Drawer.items = [%juniper.unset]", "%juniper.unset must be the whole value"),
    "a typo of unset": ("Drawer.size = %juniper.unst", "did you mean 'juniper.unset'?"),
    "a key that is not there": ("Drawer.parts['g'] = %juniper.unset", "Drawer.parts has no entry 'g'"),
    "a typo in a key": ("Drawer.nested['bb']['c'] = 1", "Drawer.nested has no entry 'bb'; did you mean 'b'?"),
    "a position that is not there": ("Drawer.items[2] = 1", "Drawer.items has 2 entries, and no entry [2]"),
    "a position that is no number": ("Drawer.items['a'] = 1", "Drawer.items has 2 entries, and no entry ['a']"),
    "an item that is not there": ("Drawer.items -= [3]", "Drawer.items has no entry 3 to remove: it is (1, 2)"),
    "no list": ("Drawer.size += [1]", "Drawer.size is 1 (int), not a list"),
    "no dict": ("Drawer.size['a'] = 1", "Drawer.size is 1 (int), which has no entries"),
    "None": ("Drawer.numbers += [1]", "Drawer.numbers is None, not a list"),
    "a list is added to a dict": (
        "Drawer.parts += [@azure]",
        "Drawer.parts is a dict: write Drawer.parts['key'] = value",
    ),
    "an item without brackets": ("Drawer.items += 3", "Drawer.items is a list: write the entries in brackets, [3]"),
    "the whole is checked": ("Drawer.parts['g'] = 3", "Drawer.parts ['g'] must be a reference"),
    "nothing to build on": ("left/Drawer.items += [3]", "left/Drawer.items has no earlier value to change"),
    "required": (
        "Drawer.items = %gin.REQUIRED\nleft/Drawer.items += [3]",
        "left/Drawer.items has no earlier value to change",
    ),
    "a macro": ("N = [1]\nN += [2]", "N is a macro, and operations change parameters only"),
    "an open bracket": ("Drawer.parts['a' = @azure", "cannot be read"),
    "no value": ("Drawer.items +=", "cannot be read"),
    "another operator": ("Drawer.size *= 2", "cannot be read"),
    "a key without a value": ("Drawer.parts['a']", "cannot be read: Expected '='."),
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_an_error_with_its_place(text, message):
    with pytest.raises(ConfigError) as caught:
        drawer(text)
    found = [str(problem) for problem in caught.value.problems]
    last = len(text.splitlines())
    assert any(message in problem and "--gin_bindings[0]" in problem for problem in found), found
    assert last == 1 or any(problem.startswith("--gin_bindings[0]:") for problem in found)


def test_provenance_names_both_places_and_the_old_value(tmp_path):
    file = tmp_path / "base.gin"
    file.write_text("# a box\n\nDrawer.items = [1]\nDrawer.size = 3\n")
    config = load(file, ["Drawer.items += [2]", "Drawer.size = %juniper.unset"], root=Cabinet)
    items, size = record_of(config, "left", "items"), record_of(config, "left", "size")
    assert (items.value, items.source, items.explicit) == ("[1, 2]", "flag", True)
    assert items.location == f"{file}:3 via --gin_bindings[0]"
    assert [(o.value, o.source, o.location) for o in items.overrode] == [
        ("(1, 2)", "default", ""),
        ("[1]", "file", f"{file}:3"),
    ]
    assert (size.value, size.source, size.location, size.explicit) == ("1", "default", "", False)
    assert [(o.value, o.source, o.location) for o in size.overrode] == [
        ("3", "file", f"{file}:4, unset by --gin_bindings[1]")
    ]
    assert "unset by --gin_bindings[1]" in explain([size])


def test_config_gin_has_the_operations_as_written():
    config = load(
        (),
        [
            "Drawer.items = [1]\nDrawer.items += [2]\nDrawer.parts['b'] = @azure\nDrawer.size = 2",
            "Drawer.size = %juniper.unset",
        ],
        root=Cabinet,
    )
    for line in (
        "Drawer.items += [2] ",
        "Drawer.parts['b'] = @azure ",
        "Drawer.size = 2 ",
        "Drawer.size = %juniper.unset ",
    ):
        assert f"\n{line}" in config.text


def test_a_flag_may_be_an_operation():
    flags = [
        "--gin.Drawer.items+=[3]",
        "--gin.Drawer.items -= [1]",
        "--gin.Drawer.nested['a=b']=1",
        "--gin.Drawer.size=4",
    ]
    bindings = [flag.removeprefix("--gin_bindings=") for flag in gin_flags_as_bindings(flags)]
    made = drawer(*bindings)
    assert (made.items, made.nested["a=b"], made.size) == ((2, 3), 1, 4)


@configurable(module="tests.operations")
class Lookout:
    def __init__(self, *, every: int = 1):
        self.every = every


@configurable(module="tests.operations")
class Errand:
    def __init__(self, *, trackers: Sequence[Callable[..., Any]] = (), named: dict[str, Callable[..., Any]] = {}):  # noqa: B006
        self.trackers = [child(f"tracker_{index}", tracker) for index, tracker in enumerate(trackers)]
        self.named = {name: child(name, tracker) for name, tracker in named.items()}


REMOVALS = {
    "an item": ("Errand.trackers = [@Lookout]", "Errand.trackers -= [@Lookout]"),
    "an entry": ("Errand.named = {'a': @Lookout}", "Errand.named['a'] = %juniper.unset"),
    "an entry replaced": ("Errand.named = {'a': @Lookout}", "Errand.named['a'] = @Drawer"),
    "a line": ("Errand.trackers = [@Lookout]", "Errand.trackers = %juniper.unset"),
    "a list replaced": ("Errand.trackers = [@Lookout]", "Errand.trackers = []"),
}


@pytest.mark.parametrize(("chosen", "removed"), REMOVALS.values(), ids=REMOVALS)
def test_options_of_a_part_removed_by_an_operation_are_skipped(chosen, removed):
    config = load((), [chosen, "Lookout.every = 5", removed], root=Errand)
    assert "# left out: replaced by Errand." in config.text
    assert "(--gin_bindings[2])" in config.text or "via --gin_bindings[2])" in config.text
    with pytest.raises(ConfigError, match="Lookout is not built"):
        load((), [chosen, removed, "Lookout.every = 5"], root=Errand)


def test_an_operation_applies_to_the_blocks_of_a_pattern(load_model):
    config = load_model(
        "LanguageModel.decoder = @Pattern\nPattern.blocks = {'a': @DecoderBlock}\nPattern.pattern = ['a']",
        "Pattern.blocks['ssm'] = @DecoderBlock",
        "Pattern.pattern += ['ssm', 'ssm']",
        allow_unused_bindings=True,
    )
    assert set(values(config, "DecoderBlock", "dropout")) == {
        "decoder/a/block_0",
        "decoder/ssm/block_1",
        "decoder/ssm/block_2",
    }
