"""Copies in place of constructions that would give an equal component, and their calls, which are made when asked for.

A thousand equal blocks are built once. The calls of a copy are those of the original at another path.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from ml.config.plans import Call

Path = tuple[str, ...]


class Copier(Protocol):
    """Makes copies of components."""

    def is_repeatable(self, constructor: Callable[..., Any]) -> bool:
        """Returns whether equal arguments give equal components, and nothing can tell how often it is called."""

    def copies_of(self, component: Any) -> Callable[[], Any] | None:
        """Returns a function that makes a copy of a component as it is now; None if it cannot be copied."""


def all_calls(calls: Iterable[Call]) -> Iterator[Call]:
    """Yields recorded calls, and after the call of a copy those inside it, in the order of a build without copies."""
    for call in calls:
        yield call
        if call.original is not None:
            yield from _inside(call, call.original)


def _inside(copy: Call, original: Call) -> Iterator[Call]:
    moved: dict[Call | None, Call] = {original: copy}
    for call in all_calls(original.inside):
        path = (*copy.path, *call.path[len(original.path) :])
        here = Call(path, call.info, call.plan, moved[call.parent], call.arguments, call.suggestions)
        here.unused, here.neutral = call.unused, call.neutral
        moved[call] = here
        yield here


def originals(calls: Iterable[Call]) -> Callable[[Path], Path]:
    """Returns a function that maps a path inside a copy to that of the original, and any other path to itself."""
    copied = {call.path: call.original.path for call in calls if call.original is not None}

    def original(path: Path) -> Path:
        found: Path = ()
        for component in path:
            found = (*found, component)
            found = copied.get(found, found)
        return found

    return original
