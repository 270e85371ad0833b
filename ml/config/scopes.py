"""Scopes: matching bindings to places in the model (rule 2), and precedence between matches (rule 3).

A *path* is the active scope of a module, `decoder/block_3/mixer/query`. The scope of a binding is a list of *patterns*,
each a name or a range of them (`block_0_to_3`). It reaches every path on which its patterns occur, in order.
"""

import functools
import re
from typing import NamedTuple

_RANGE = re.compile(r"(?P<stem>.*\D)(?P<first>\d{1,18})_to_(?P<last>\d{1,18})")
_INDEXED = re.compile(r"(?P<stem>.*\D)(?P<index>\d{1,18})")


class Range(NamedTuple):
    """`block_0_to_3`: the components `block_0` to `block_3`, both included."""

    stem: str
    first: int
    last: int


@functools.cache
def parse_range(pattern: str) -> Range | None:
    """Returns the range that a pattern represents, or None for a plain name."""
    match = _RANGE.fullmatch(pattern)
    return Range(match["stem"], int(match["first"]), int(match["last"])) if match else None


@functools.cache
def split_index(component: str) -> tuple[str, int] | None:
    """Splits `block_12` into `("block_", 12)`; returns None for a component without an index."""
    match = _INDEXED.fullmatch(component)
    return (match["stem"], int(match["index"])) if match else None


def matches(pattern: str, component: str) -> bool:
    """Returns whether a pattern matches one component of a path."""
    if pattern == component:
        return True
    span = parse_range(pattern)
    indexed = split_index(component)
    return bool(span and indexed and indexed[0] == span.stem and span.first <= indexed[1] <= span.last)


def occurs(scope: tuple[str, ...], path: tuple[str, ...]) -> bool:
    """Returns whether the patterns of a scope occur on a path, in order (rule 2)."""
    remaining = iter(path)
    return all(any(matches(pattern, component) for component in remaining) for pattern in scope)


class Match(NamedTuple):
    """The match of a scope with a path. The greater of two matches wins (the first four parts of rule 3)."""

    length: int
    positions: tuple[int, ...]  # of the matched components, deepest first
    exact: tuple[bool, ...]  # whether each is matched by a name rather than a range, deepest first


def match(scope: tuple[str, ...], path: tuple[frozenset[str], ...]) -> Match | None:
    """Returns the deepest match of the patterns of `scope`, in order, on `path`, or None.

    Args:
        scope: The patterns of a binding.
        path: For each component of a path, the patterns that match it (see `PathIndex`).
    """
    positions, exact = [], []
    end = len(path)
    for pattern in reversed(scope):
        end -= 1
        while end >= 0 and pattern not in path[end]:
            end -= 1
        if end < 0:
            return None
        positions.append(end)
        exact.append(parse_range(pattern) is None)
    return Match(len(scope), tuple(positions), tuple(exact))


class PathIndex:
    """Reduces paths so that places with the same bindings share one key.

    A thousand equal blocks have a thousand paths. Each component is replaced by the patterns that match it, and dropped
    if there are none, so that a lookup for one block serves all.

    Args:
        scopes: The scopes of all bindings.
    """

    def __init__(self, scopes: set[tuple[str, ...]]):
        self._patterns = {pattern for scope in scopes for pattern in scope}
        self._components: dict[str, frozenset[str]] = {}
        self._paths: dict[tuple[str, ...], tuple[frozenset[str], ...]] = {}

    def reduce(self, path: tuple[str, ...]) -> tuple[frozenset[str], ...]:
        """Returns the patterns that match each component, without the components that match none."""
        reduced = self._paths.get(path)
        if reduced is None:
            reduced = tuple(found for component in path if (found := self._satisfied(component)))
            self._paths[path] = reduced
        return reduced

    def below(self, reduced: tuple[frozenset[str], ...], component: str) -> tuple[frozenset[str], ...]:
        """Returns the reduced path of a component below a path that is already reduced."""
        found = self._components.get(component)
        if found is None:
            found = self._satisfied(component)
        return (*reduced, found) if found else reduced

    def _satisfied(self, component: str) -> frozenset[str]:
        found = self._components.get(component)
        if found is None:
            found = frozenset(pattern for pattern in self._patterns if matches(pattern, component))
            self._components[component] = found
        return found


def without_indices(path: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the path without its numbered components, the same for all equal blocks."""
    return tuple(component for component in path if not split_index(component))


def compress(paths: list[tuple[str, ...]]) -> list[str]:
    """Returns paths as text, with runs of a numbered component as a range: `decoder/block_0_to_11/mixer`."""
    groups: dict[tuple, list[int]] = {}
    for path in paths:
        indexed = next(((i, found) for i, component in enumerate(path) if (found := split_index(component))), None)
        if indexed is None:
            groups.setdefault((path, None), [])
        else:
            index, (stem, number) = indexed
            groups.setdefault(((*path[:index], stem, *path[index + 1 :]), index), []).append(number)
    return [text for (path, index), numbers in groups.items() for text in _spell(path, index, numbers)]


def _spell(path: tuple[str, ...], index: int | None, numbers: list[int]) -> list[str]:
    if index is None:
        return ["/".join(path)]
    spelled = []
    for first, last in runs(sorted(set(numbers))):
        component = f"{path[index]}{first}" if first == last else f"{path[index]}{first}_to_{last}"
        spelled.append("/".join((*path[:index], component, *path[index + 1 :])))
    return spelled


def runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Returns sorted numbers as runs: [0, 1, 2, 5] gives [(0, 2), (5, 5)]."""
    result: list[tuple[int, int]] = []
    for number in numbers:
        if result and number == result[-1][1] + 1:
            result[-1] = (result[-1][0], number)
        else:
            result.append((number, number))
    return result
