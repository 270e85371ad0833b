"""Values of one configurable at one kind of place, computed once for all equal blocks."""

import copy
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gin

from ml.config.configurable import ScopedConstructor
from ml.config.scopes import Match
from ml.config.signatures import EMPTY, Configurable, ParameterSpec
from ml.config.statements import Binding, Layer
from ml.config.suggestions import Suggestions
from ml.config.values import Constant, Reference, substitute, walk


class Candidate:
    """A binding that matches a place, with the match and, if it needs no construction, its Python value."""

    __slots__ = ("binding", "is_ready", "match", "ready")

    def __init__(self, binding: Binding, found: Match):
        self.binding = binding
        self.match = found
        nodes = list(walk(binding.value))
        self.is_ready = not any(
            isinstance(node, list | dict) or (isinstance(node, Reference) and node.evaluate) for node in nodes
        )
        self.ready = substitute(binding.value, to_object) if self.is_ready else None

    @property
    def rank(self) -> tuple:
        """The precedence: of two candidates, the one with the greater rank wins (rule 3)."""
        return (self.binding.layer.strength, self.match, self.binding.order)


class Plan:
    """The bindings of one configurable at one kind of place.

    Args:
        candidates: The bindings that match, by parameter.
        info: The configurable.

    Attributes:
        candidates: The bindings that match, by parameter, in order of precedence, lowest first.
        strong: The winning binding of each parameter that overrides the suggestions of a parent.
        weak: The winning binding of each parameter that is a saved default, which suggestions override.
        left_out: Parameters that a saved run set without effect, whose values are unknown.
        missing: Required parameters that are not set.
        is_plain: Whether all values are literals or build what they refer to: no object is shared between two calls.
    """

    __slots__ = ("candidates", "is_plain", "left_out", "missing", "strong", "weak")

    def __init__(self, candidates: dict[str, list[Candidate]], info: Configurable):
        self.candidates = {parameter: _ordered(found) for parameter, found in candidates.items()}
        winners = {parameter: found[-1] for parameter, found in self.candidates.items()}
        self.weak = {p: c for p, c in winners.items() if c.binding.layer is Layer.DEFAULT}
        self.strong = {p: c for p, c in winners.items() if p not in self.weak}
        unset = [p for p, spec in info.parameters.items() if spec.default is gin.REQUIRED and p not in winners]
        self.left_out = [p for p, c in winners.items() if c.binding.is_left_out]
        without = [p for p in self.left_out if _has_no_default(info, p)]
        self.missing = [*unset, *(p for p, c in winners.items() if c.binding.requires), *without]
        self.is_plain = all(_is_plain(node) for c in winners.values() for node in walk(c.binding.value))


def _is_plain(node: Any) -> bool:
    return not isinstance(node, Constant) or isinstance(node.value, bool | int | float | str | enum.Enum | None)


def _has_no_default(info: Configurable, parameter: str) -> bool:
    spec = info.parameters.get(parameter)
    return spec is not None and (spec.default is EMPTY or spec.default is gin.REQUIRED)


class Cause(NamedTuple):
    """A parameter whose value disables another one.

    Attributes:
        name: Its name, with that of its configurable.
        binding: The binding that set it; None if none did.
        default: Its default there; `UNSET` if the parent passes it.
    """

    name: str
    binding: Binding | None
    default: Any = None


_NOTHING: Mapping[str, tuple[Cause, ...]] = {}


class Call:
    """One construction.

    Args:
        path: The place.
        info: The configurable.
        plan: The plan for this kind of place.
        parent: The construction that it is part of; None for the root.
        arguments: The values that the parent passes.
        suggestions: The suggestions of the parent.

    Attributes:
        unused: The parameters without effect, with the causes.
        original: The construction that was copied instead of calling the constructor again; None if it was called.
        inside: The recorded calls inside this one, if it was copied.
        neutral: The parameters whose conditional declaration as neutral holds for what was built.
    """

    __slots__ = (
        "arguments",
        "info",
        "inside",
        "neutral",
        "original",
        "parent",
        "path",
        "plan",
        "suggestions",
        "unused",
    )

    def __init__(self, path, info, plan, parent, arguments, suggestions):
        self.path: tuple[str, ...] = path
        self.info: Configurable = info
        self.plan: Plan = plan
        self.parent: Call | None = parent
        self.arguments: Mapping[str, Any] = arguments
        self.suggestions: Suggestions = suggestions
        self.unused: Mapping[str, tuple[Cause, ...]] = _NOTHING
        self.original: Call | None = None
        self.inside: Sequence[Call] = ()
        self.neutral: frozenset[str] = frozenset()

    @property
    def parameters(self) -> list[ParameterSpec]:
        """The parameters that can be bound, in order of the signature, then those in `**kwargs` of this call."""
        declared = self.info.parameters
        if self.info.extra is None:
            return list(declared.values())
        suggested = self.suggestions
        offered = {*self.plan.candidates, *suggested.defaults, *suggested.saved, *suggested.derived}
        named = (offered | self.arguments.keys()) - declared.keys()
        extra = (self.info.spec(name) for name in sorted(named))
        return [*declared.values(), *(spec for spec in extra if spec)]


def parts_of(calls: list[Call], belongs: Callable[[Configurable], bool]) -> list[Call]:
    """Returns the calls, in order, that build a component for which `belongs` is true, or anything inside one."""
    kept: set[Call] = set()
    for call in calls:  # a parent is called before its children
        if call.parent in kept or belongs(call.info):
            kept.add(call)
    return [call for call in calls if call in kept]


def _ordered(found: list[Candidate]) -> list[Candidate]:
    """The candidates in order of precedence, lowest first; an imported value overrides `%gin.REQUIRED`."""
    found = sorted(found, key=lambda candidate: candidate.rank)
    imported = [candidate for candidate in found if candidate.binding.layer is Layer.IMPORTED]
    if imported and found[-1].binding.requires:
        found.remove(imported[-1])
        found.append(imported[-1])
    return found


def to_object(node: Any) -> Any:
    """Returns the Python object for a leaf of a value; a reference gives the constructor."""
    if isinstance(node, Reference):
        info = node.configurable
        return (
            ScopedConstructor(node.scopes, info.selector, info if info.imported else None)
            if node.scopes
            else info.target
        )
    if isinstance(node, Constant):
        return node.value
    return copy.deepcopy(node)
