"""Queries on a finished build: which places are alike, and which binding selected the component at a place."""

import functools
from collections.abc import Hashable, Iterable, Iterator

from ml.config.configurable import Configurable
from ml.config.copies import all_calls, originals
from ml.config.errors import Problem
from ml.config.plans import Call
from ml.config.statements import Binding
from ml.config.values import Reference, walk

Path = tuple[str, ...]


class Built:
    """The constructions of one build, by place.

    Args:
        calls: The constructions.
    """

    def __init__(self, calls: list[Call]):
        self._calls = calls

    @functools.cached_property
    def _by_path(self) -> dict[Path, list[Call]]:
        by_path: dict[Path, list[Call]] = {}
        for call in all_calls(self._calls):
            by_path.setdefault(call.path, []).append(call)
        return by_path

    def kinds(self, paths: Iterable[Path]) -> dict[Path, Hashable]:
        """Returns a value for each of `paths`, equal for places with the same component built in the same way."""
        original = originals(self._calls)
        places = {path: original(path) for path in paths}
        kinds: dict[Path, list] = {place: [] for place in places.values()}
        depths = sorted({len(path) for path in kinds})
        for call in self._calls:
            for depth in depths:
                if call.path[:depth] in kinds:
                    kinds[call.path[:depth]].append(_kind(call, depth))
        finished = {place: tuple(found) for place, found in kinds.items()}
        return {path: finished[place] for path, place in places.items()}

    def problem(self, path: Path, message: str) -> Problem:
        """Returns a problem with the component at `path`.

        It is located at the binding that selected the component, else at the one that selected an enclosing component.
        """
        binding = next((found for end in range(len(path), 0, -1) for found in self._chosen(path[:end])), None)
        if binding is None:
            return Problem(None, message)
        return Problem(binding.location, message, binding.text(written=True))

    def _chosen(self, path: Path) -> Iterator[Binding]:
        infos = {call.info for call in self._by_path.get(path, ())}
        for end in range(len(path) - 1, -1, -1):
            calls = self._by_path.get(path[:end], ())
            found = [c[-1].binding for call in calls for c in call.plan.candidates.values()]
            found = [binding for binding in found if _refers(binding, infos)]
            # A parameter with the name of a child selects that child only: `mixer` does not select `mixer_norm`.
            others = {binding for binding in found if (*path[:end], binding.parameter) in self._by_path}
            own = {binding for binding in found if binding.parameter == path[end]}
            yield from sorted(found, key=lambda binding: (binding not in own, binding in others))


def _kind(call: Call, depth: int) -> Hashable:
    decided = tuple((name, _comparable(value)) for name, value in call.arguments.items())
    inside = call.original.path[depth:] if call.original else None
    return call.path[depth:], inside, id(call.plan), call.info.selector, decided


def _comparable(value: object) -> object:
    if isinstance(value, list | tuple):
        return tuple(_comparable(item) for item in value)
    return value if isinstance(value, int | float | str | None) else type(value)


def _refers(binding: Binding, infos: set[Configurable]) -> bool:
    return any(isinstance(node, Reference) and node.configurable in infos for node in walk(binding.value))
