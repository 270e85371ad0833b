"""The operative config: every value that took effect, in a form that loads back to an equal configuration (rule 9).

It has one section per layer, in order of precedence, lowest first. A binding added to it has the same meaning as one
added to the original files. A value that a user set keeps its scope. A default of the code has no scope, and the
precedence of a default. A parent's suggestion has the type of the parent and the place of the child below it, and
applies nowhere else. An option that had no effect is listed as `%juniper.left_out`; a later binding that makes it
effective is an error. An imported value that had no effect stays, and takes effect where a later binding chooses its
component.
"""

from collections import Counter
from collections.abc import Iterable

import gin

from ml.config.components import Component
from ml.config.configurable import reference_to
from ml.config.construction import Build
from ml.config.effects import Effects
from ml.config.errors import ConfigError, Problem
from ml.config.names import Names
from ml.config.neutrality import NeutralParts, is_neutral
from ml.config.operative_lines import HEADER, LAYER_LINE, NEUTRAL_SUFFIX
from ml.config.plans import Call
from ml.config.provenance import text_of
from ml.config.scopes import compress, parse_range, without_indices
from ml.config.signatures import EMPTY, Configurable
from ml.config.statements import CODE_KEY, UNSET, Binding, Import, Layer, as_scope
from ml.config.types import mismatch
from ml.config.values import LEFT_OUT, UnwritableError, substitute

_TITLES = {
    Layer.DEFAULT: "Defaults of the code",
    Layer.PARENT: "Defaults that parents hand to their children",
    Layer.IMPORTED: "Imported with a checkpoint",
    Layer.FILE: "Set by configuration files and flags",
}


def operative_config(
    build: Build, effects: Effects, imports: Iterable[Import], names: Names, components: Iterable[Component] = ()
) -> str:
    """Returns the operative config of a build that recorded its calls.

    Args:
        build: The finished build.
        effects: The effects of its bindings.
        imports: The import statements.
        names: The names of configurables.
        components: The sources of imported modules, of which the hashes are written.

    Raises:
        ConfigError: A value cannot be written as text; it lists all such values.
    """
    writer = _Writer(build.calls, names)
    sections: dict[Layer, list[str]] = {layer: [] for layer in _TITLES}
    for info in sorted(writer.built, key=lambda info: (info.name, info.selector)):
        for parameter in info.parameters:
            sections[Layer.DEFAULT] += writer.default(info, parameter)
    sections[Layer.PARENT] = writer.suggestions()
    written = [b for b in effects.effective if b.layer >= Layer.IMPORTED]
    for binding in _canonical_order([*written, *effects.without_effect]):
        section = Layer.IMPORTED if binding.layer is Layer.IMPORTED else Layer.FILE
        sections[section].append(writer.binding(binding, binding in effects.effective))
    if writer.problems:
        raise ConfigError(writer.problems)
    parts = [HEADER, *(f"{line}\n" for line in sorted({i.text for i in imports}))]
    if hashes := {component.file: component.sha256 for component in components}:
        parts.append(f"{CODE_KEY} = {text_of(hashes)}\n")
    for layer, lines in sections.items():
        if lines:
            body = "\n".join(lines)
            parts.append(f"\n# {_TITLES[layer]}.\n{LAYER_LINE}'{layer.name.lower()}'\n{body}\n")
    return "".join(parts)


class _Writer:
    """Writes the lines of one build."""

    def __init__(self, calls: list[Call], names: Names):
        self._spell = names.spell
        self.problems: list[Problem] = []
        self.built: dict[Configurable, list[Call]] = {}
        self._neutral = NeutralParts(calls)
        self._users: dict[Binding, list[Call]] = {}
        for call in calls:
            self.built.setdefault(call.info, []).append(call)
            for parameter, candidate in call.plan.strong.items():
                if parameter not in call.arguments and parameter not in call.unused:
                    self._users.setdefault(candidate.binding, []).append(call)

    def line(self, key: str, value: object, origin: str, users: Iterable[tuple[Call, str]] = ()) -> str:
        """Returns `key = value`, or reports that the value of `origin` cannot be written.

        A value that changes no result is marked, unless its declaration holds for every run.
        """
        marked = [self._neutral.contains(call, parameter) for call, parameter in users]
        is_marked = bool(marked) and all(marked) and not is_neutral(key.rpartition("/")[2])
        try:
            return f"{key} = {text_of(value, self._spell)}{NEUTRAL_SUFFIX if is_marked else ''}"
        except UnwritableError as error:
            self.problems.append(Problem(None, f"{key} ({origin}): {error}"))
            return ""

    def binding(self, binding: Binding, has_effect: bool) -> str:
        """Returns the line for a binding."""
        users = [(call, binding.parameter) for call in self._users.get(binding, ())]
        is_kept = has_effect or binding.layer is Layer.IMPORTED  # idle until a later binding chooses its component
        value = binding.value if is_kept else LEFT_OUT
        return self.line(binding.key_by(self._spell), value, str(binding.location), users if has_effect else ())

    def default(self, info: Configurable, parameter: str) -> list[str]:
        """Returns the line for a default of the code if a component uses it."""
        users = [call for call in self.built[info] if _source(call, parameter) is Layer.DEFAULT]
        if not users:
            return []
        saved = users[0].plan.weak.get(parameter)
        value = saved.binding.value if saved else info.parameters[parameter].default
        self._check(info, parameter, value)
        pairs = ((call, parameter) for call in users)
        return [self.line(f"{self._spell(info)}.{parameter}", value, "its default", pairs)]

    def _check(self, info: Configurable, parameter: str, value: object) -> None:
        """Reports a default that does not fit its annotation, since reading it back would fail."""
        tree = substitute(value, lambda leaf: reference_to(leaf) or leaf)
        if wrong := mismatch(tree, info.parameters[parameter].annotation):
            name = f"{self._spell(info)}.{parameter}"
            self.problems.append(Problem(None, f"{name}, its default, {wrong}: change the default or its annotation"))

    def suggestions(self) -> list[str]:
        """Returns the lines for the suggestions of parents that took effect.

        A suggestion that differs between two parents of one type follows from their parameters, which are written.
        """
        values: dict[tuple, dict[str, set[tuple[str, ...]]]] = {}
        for call in (call for calls in self.built.values() for call in calls):
            if call.parent is None:
                continue
            for parameter in call.suggestions.saved.keys() | call.suggestions.defaults.keys():
                if _source(call, parameter) is Layer.PARENT:
                    origin = f"{call.info.name}.{parameter}, by its parent"
                    neutral = [] if is_neutral(f"{self._spell(call.info)}.{parameter}") else [(call, parameter)]
                    text = self.line("", call.suggestions.value(parameter), origin, neutral)
                    kind = (call.parent.info, without_indices(call.suggestions.place), call.info, parameter)
                    values.setdefault(kind, {}).setdefault(text, set()).add(call.suggestions.place)
        lines = []
        for (parent, _, info, parameter), places in values.items():
            counts = Counter(place for found in places.values() for place in found)
            for text, found in places.items():
                for place in compress([place for place in found if counts[place] == 1]):
                    lines.append(f"{as_scope(self._spell(parent))}/{place}/{self._spell(info)}.{parameter}{text}")
        return sorted(lines)


def _source(call: Call, parameter: str) -> Layer | None:
    """The section with a parameter's value: `DEFAULT`, `PARENT`, or None for any other."""
    if parameter in call.arguments or parameter in call.suggestions.derived or parameter in call.plan.strong:
        return None
    if call.suggestions.value(parameter) is not UNSET:
        return Layer.PARENT
    default = call.info.parameters[parameter].default
    if parameter in call.plan.weak:
        return Layer.DEFAULT
    return None if default is EMPTY or default is gin.REQUIRED else Layer.DEFAULT


def _canonical_order(bindings: Iterable[Binding]) -> list[Binding]:
    """An order independent of that of the files, except between ranges, where the later of two bindings wins."""

    def spelled(pattern: str) -> tuple:
        span = parse_range(pattern)
        return (span.stem, "range") if span else (pattern, "")

    def key(binding: Binding) -> tuple:
        scope = tuple(spelled(pattern) for pattern in binding.scope)
        parameters = list(binding.configurable.parameters)
        place = parameters.index(binding.parameter) if binding.parameter in parameters else len(parameters)
        name = (binding.configurable.name, binding.configurable.selector)
        return (name, place, binding.parameter, len(scope), scope, binding.order)

    return sorted(bindings, key=key)
