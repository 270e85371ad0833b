"""Effect of each binding in a build, so that none is silently ignored (rule 7)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ml.config.construction import Build
from ml.config.copies import all_calls
from ml.config.errors import Problem
from ml.config.reasons import Places, kinds_of_call
from ml.config.rewound import RewoundBuild
from ml.config.statements import Binding, Layer, Unset


@dataclass
class Effects:
    """The effect of each binding in a build.

    Attributes:
        effective: Bindings that set the value of at least one parameter.
        left_out: Bindings that a later binding (the value of the dict) disabled: it replaced their component, or it is
            from a later source and overrides them everywhere or disables their parameter.
        idle: Problems of the other bindings without effect.
        without_effect: All bindings that are neither effective nor replaced by a later binding of the same key.
    """

    effective: set[Binding] = field(default_factory=set)
    left_out: dict[Binding, Binding] = field(default_factory=dict)
    idle: list[Problem] = field(default_factory=list)
    without_effect: list[Binding] = field(default_factory=list)


def effective_bindings(build: Build) -> set[Binding]:
    """Returns the explicit and imported bindings that set a value in a build that recorded its calls."""
    effective = set(build.singletons_used)
    for call in kinds_of_call(build.calls):
        winners = call.plan.strong.items()
        effective |= {c.binding for p, c in winners if p not in call.arguments and p not in call.unused}
    return effective


def find_effects(
    bindings: list[Binding], build: Build, run: Callable[[Build], object], unset: Sequence[Unset] = ()
) -> Effects:
    """Returns the effect of every binding of a build.

    Args:
        bindings: All bindings, in order.
        build: The finished build, which recorded its calls.
        run: Runs another build to its end and ignores errors.
        unset: The statements that removed bindings; the removed ones are not in `bindings`.
    """
    effects = Effects(effective_bindings(build))
    places = Places(build)
    accounted = effects.effective | _replaced_by_later(bindings)
    effects.without_effect = [b for b in bindings if b not in accounted and b.layer >= Layer.IMPORTED]
    unused = [b for b in effects.without_effect if b.layer.explicit and not b.is_left_out]
    unused = [b for b in unused if not (b.requires and _is_fulfilled(b, places))]
    effects.left_out = _excused(unused, places)
    if waiting := {b for b in unused if b not in effects.left_out}:
        effects.left_out |= _swapped_out(bindings, waiting, build, run, unset)
    for binding in unused:
        if binding not in effects.left_out:
            effects.idle.append(Problem(binding.location, places.why_idle(binding), binding.text(written=True)))
    return effects


def _replaced_by_later(bindings: list[Binding]) -> set[Binding]:
    last: dict[tuple, Binding] = {}
    for binding in bindings:
        last[binding.identity] = binding
    return {binding for binding in bindings if last[binding.identity] is not binding}


def _is_fulfilled(requirement: Binding, places: Places) -> bool:
    """True if a required parameter is set at a place whose parent does not pass it."""
    return any(not obstacle.decided for obstacle in places.obstacles(requirement))


def _excused(unused: list[Binding], places: Places) -> dict[Binding, Binding]:
    """The bindings that have no effect only because of later sources, with the last binding of these sources."""
    excused = {}
    for binding in unused:
        found = [obstacle.excuse(binding) for obstacle in places.obstacles(binding)]
        excuses = [excuse for excuse in found if excuse is not None]
        if found and len(excuses) == len(found):
            excused[binding] = max(excuses, key=lambda excuse: excuse.settled)
    return excused


def _ends_of_sources(bindings: list[Binding]) -> set[int]:
    """The order of each binding after which another file or flag begins: a part may be chosen below its options."""
    return {one.order for one, after in pairwise(bindings) if one.location.source != after.location.source}


def _swapped_out(
    bindings: list[Binding],
    waiting: set[Binding],
    build: Build,
    run: Callable[[Build], object],
    unset: Sequence[Unset],
) -> dict[Binding, Binding]:
    """The bindings whose component a later binding replaced, with that binding: without it they take effect."""
    orders = {binding.order for binding in waiting}
    moments = orders | {end for end in _ends_of_sources(bindings) if end > min(orders)}  # none had been read before
    rewound = RewoundBuild(bindings, moments, unset)
    if rewound.differs:
        run(rewound)
    return rewound.revived(waiting, {(call.path, call.info.selector) for call in all_calls(build.calls)})
