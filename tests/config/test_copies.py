"""Children that are copied, and those that are built one by one, with equal records either way."""

import copy

import gin
import pytest

from ml.config import Config, ConfigError, children, configurable, load, require
from ml.config.constructors import child

_calls: list[str] = []


class DeepCopier:
    """Copies what any constructor of this module built, except for `CopyCounter`."""

    def is_repeatable(self, constructor):
        return constructor.__module__ == __name__ and constructor is not CopyCounter

    def copies_of(self, component):
        return lambda: copy.deepcopy(component)


class NoCopier(DeepCopier):
    def copies_of(self, component):
        return None


_copier = [DeepCopier()]


@configurable
class CopyStack:
    def __init__(self, *, part=None, num_parts: int = 6):
        self.parts = children([f"part_{i}" for i in range(num_parts)], part or CopyPart, 3, copier=_copier[0])


@configurable
class CopyPart:
    def __init__(self, size: int, *, width: int = 1, leaf=None, shared: object = None):
        _calls.append("CopyPart")
        require(width > 0, "width", f"must be positive, not {width}")
        self.size, self.width, self.shared = size, width, shared
        self.leaf = child("leaf", leaf or CopyLeaf, size, defaults={"scale": 2.0})
        self.inner = children(["inner_0", "inner_1"], CopyLeaf, width, copier=_copier[0])


@configurable
class CopyLeaf:
    def __init__(self, size: int, *, scale: float = 1.0):
        self.size, self.scale = size, scale


@configurable
class CopyCounter(CopyLeaf):
    def __init__(self, size: int, *, scale: float = 1.0):
        super().__init__(size, scale=scale)
        _calls.append("CopyCounter")


@configurable
def copy_shared() -> object:
    return []


gin.constant("copy_test.OBJECT", DeepCopier())


def shown(built: CopyStack) -> dict:
    return {
        name: (part.size, part.width, part.leaf.size, part.leaf.scale, [p.scale for p in part.inner.values()])
        for name, part in built.parts.items()
    }


def loaded(*bindings: str, copier=None) -> tuple[Config, CopyStack, int]:
    """Returns the configuration, what it builds, and how many parts were constructed in the build."""
    _copier[0] = copier or DeepCopier()
    config = load((), list(bindings), root=CopyStack)
    _calls.clear()
    built = config.build(CopyStack)
    return config, built, _calls.count("CopyPart")


CASES = {
    "no binding": ([], 1),
    "one for all": (["CopyPart.width = 4", "CopyLeaf.scale = 3.0"], 1),
    "one part": (["part_2/CopyPart.width = 4"], 2),
    "one leaf": (["part_4/leaf/CopyLeaf.scale = 5.0"], 2),
    "a range": (["part_1_to_3/CopyPart.width = 4"], 2),
    "a range and one in it": (["part_1_to_3/CopyPart.width = 4", "part_2/CopyPart.width = 5"], 3),
    "overlapping ranges": (["part_0_to_3/CopyPart.width = 4", "part_2_to_5/inner_1/CopyLeaf.scale = 6.0"], 3),
    "a flavor": (["CopyStack.part = @wide/CopyPart", "wide/CopyLeaf.scale = 7.0"], 1),
    "a flavor of one": (["part_5/CopyPart.leaf = @wide/CopyLeaf", "wide/CopyLeaf.scale = 7.0"], 2),
}


@pytest.mark.parametrize("name", CASES)
def test_parts_that_no_binding_distinguishes_are_built_once(name):
    bindings, num_built = CASES[name]
    config, built, count = loaded(*bindings)
    one_by_one, expected, count_of_all = loaded(*bindings, copier=NoCopier())
    assert (count, count_of_all) == (num_built, 6)
    assert shown(built) == shown(expected)
    assert list(config.records()) == list(one_by_one.records())
    assert config.operative == one_by_one.operative
    assert len({id(part) for part in built.parts.values()}) == 6
    assert len({id(leaf) for part in built.parts.values() for leaf in part.inner.values()}) == 12


def test_a_saved_run_builds_the_same_copies():
    saved = loaded("part_3/CopyPart.width = 4")[0].operative
    config, built, count = loaded(saved)
    assert count == 2
    assert shown(built)["part_3"] == (3, 4, 3, 2.0, [1.0, 1.0])
    assert config.operative == saved


def test_a_constructor_that_is_not_repeatable_is_called_for_every_part():
    _, _, count = loaded("CopyPart.leaf = @CopyCounter")
    assert (count, _calls.count("CopyCounter")) == (6, 6)
    _, _, count = loaded("part_1/CopyPart.leaf = @CopyCounter")
    assert (count, _calls.count("CopyCounter")) == (2, 1)


def test_a_shared_object_stays_shared():
    singleton = ["CopyPart.shared = @one/gin.singleton()", "one/gin.singleton.constructor = @copy_shared"]
    _, built, count = loaded(*singleton)
    assert count == 6
    assert len({id(part.shared) for part in built.parts.values()}) == 1
    _, built, count = loaded("CopyPart.shared = %copy_test.OBJECT")
    assert count == 6
    assert len({id(part.shared) for part in built.parts.values()}) == 1


def test_an_invalid_value_is_reported_with_all_places():
    with pytest.raises(ConfigError) as caught:
        loaded("part_1_to_4/CopyPart.width = -1")
    (problem,) = caught.value.problems
    assert "must be positive, not -1 (at part_1_to_4)" in str(problem)


def test_a_binding_without_effect_is_reported_with_the_places_of_copies():
    with pytest.raises(ConfigError) as caught:
        loaded("leaf/CopyPart.width = 4")
    (problem,) = caught.value.problems
    assert "it is built at part_0_to_5" in str(problem)
