"""Canonical values: equal runs have equal fingerprints, however their values are written."""

import copy
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import pytest

from ml.config import UNORDERED, ImportedValue, configurable, load
from ml.config.canonical import canonical
from ml.config.types import mismatch

Counts = Annotated[dict[str, int], UNORDERED]


@pytest.mark.parametrize(
    ("value", "annotation", "spelled"),
    [
        (1, float, "1.0"),
        (0.5, float, "0.5"),
        (1, int, "1"),
        (True, bool, "True"),
        (1, float | None, "1.0"),
        (1, int | float, "1"),
        (1.0, int | float, "1.0"),
        (1, Literal[1] | float, "1"),
        (2, Literal[1] | float, "2.0"),
        (1, Any, "1"),
        (1, Annotated[float, "a unit"], "1.0"),
        ((1, 2), Sequence[int], "[1, 2]"),
        ([1, 2], Sequence[int], "[1, 2]"),
        ((1, 2), Iterable[float], "[1.0, 2.0]"),
        ((1, 2), Sequence, "[1, 2]"),
        (((1,), [2]), Sequence[Sequence[float]], "[[1.0], [2.0]]"),
        ((1, 2), tuple[float, int], "(1.0, 2)"),
        ((1, 2), tuple[float, ...], "(1.0, 2.0)"),
        ((1, 2), tuple, "(1, 2)"),
        ([1], list[float], "[1.0]"),
        ((1,), list[int] | tuple[int, ...], "(1,)"),
        ((1,), Any, "(1,)"),
        ({"b": 1, "a": 2}, dict[str, float], "{'b': 1.0, 'a': 2.0}"),
        ({"b": 1, "a": 2}, Mapping[str, int], "{'b': 1, 'a': 2}"),
        ({"b": 1, "a": 2}, Counts, "{'a': 2, 'b': 1}"),
        ({"b": 1, "a": 2}, Counts | None, "{'a': 2, 'b': 1}"),
        ([{"b": 1, "a": 2}], list[Counts], "[{'a': 2, 'b': 1}]"),
        (10**400, float, str(10**400)),
    ],
    ids=str,
)
def test_a_value_has_one_spelling(value, annotation, spelled):
    before = copy.deepcopy(value)
    assert repr(canonical(value, annotation)) == spelled
    assert value == before


VALUES = [None, True, 1, 1.5, "a", [], [1], (1,), (1, 2), [[1], (2.0,)], {"b": 1, "a": (1,)}, {"a": {"d": 1, "c": 2}}]
ANNOTATIONS = [
    Any,
    float,
    float | None,
    Sequence[float],
    Sequence[Sequence[float]] | None,
    tuple[float, ...] | list[float],
    tuple[float, float],
    dict[str, float | Sequence[int]],
    Annotated[dict[str, Any], UNORDERED],
    dict[str, Annotated[dict[str, float], UNORDERED]],
]


@pytest.mark.parametrize(("value", "annotation"), list(itertools.product(VALUES, ANNOTATIONS)), ids=str)
def test_the_canonical_form_is_stable_and_matches_the_annotation(value, annotation):
    found = canonical(value, annotation)
    assert (mismatch(found, annotation) is None) == (mismatch(value, annotation) is None)
    assert repr(canonical(found, annotation)) == repr(found)


@configurable
class Mixed:
    def __init__(
        self,
        *,
        rate: float = 0.5,
        sizes: Sequence[float] = (),
        shares: Annotated[dict[str, float], UNORDERED] | None = None,
        parts: dict[str, float] | None = None,
        names: Sequence[str] = ("a",),
    ):
        self.rate, self.sizes, self.shares, self.parts, self.names = rate, sizes, shares, parts, names


def load_mixed(*bindings: str, **options):
    return load((), bindings, root=Mixed, **options)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Mixed.rate = 1", "Mixed.rate = 1.0"),
        ("Mixed.rate = 1", "RATE = 1.0\nMixed.rate = %RATE"),
        ("Mixed.sizes = (1, 2)", "Mixed.sizes = [1.0, 2.0]"),
        ("Mixed.shares = {'a': 1, 'b': 2.0}", "Mixed.shares = {'b': 2, 'a': 1.0}"),
    ],
)
def test_equal_runs_have_equal_fingerprints(one, other):
    ours, theirs = load_mixed(one), load_mixed(other)
    assert ours.operative == theirs.operative
    assert ours.fingerprint == theirs.fingerprint
    assert repr(vars(ours.build(Mixed))) == repr(vars(theirs.build(Mixed)))
    again = load_mixed(ours.operative)
    assert again.operative == ours.operative
    assert repr(vars(again.build(Mixed))) == repr(vars(ours.build(Mixed)))


def test_an_imported_value_has_the_same_spelling_as_one_from_a_file():
    config = load_mixed(imported=[ImportedValue("Mixed.rate", 1, "config.json")])
    assert "\nMixed.rate = 1.0\n" in config.operative


def test_the_order_of_a_dict_with_meaning_is_kept():
    ours, theirs = load_mixed("Mixed.parts = {'a': 1, 'b': 2}"), load_mixed("Mixed.parts = {'b': 2, 'a': 1}")
    assert ours.fingerprint != theirs.fingerprint
    assert list(theirs.build(Mixed).parts) == ["b", "a"]


def test_a_default_of_the_code_is_saved_and_loaded_unchanged():
    config = load_mixed()
    assert load_mixed(config.operative).build(Mixed).names == ("a",)
    assert load_mixed("Mixed.names = ('a',)").build(Mixed).names == ["a"]
