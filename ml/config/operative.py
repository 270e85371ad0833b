"""The operative config: every value that took effect, in a form that loads back to an equal configuration (rule 9).

It has one section per layer, in order of precedence, lowest first. A binding added to it has the same meaning as one
added to the original files. A value that a user set keeps its scope. A default of the code has no scope, and the
precedence of a default. A parent's suggestion has the type of the parent and the place of the child below it, and
applies nowhere else. An option that had no effect is listed as `%juniper.left_out`; a later binding that makes it
effective is an error.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator

import gin

from ml.config.components import Component
from ml.config.configurable import is_neutral, reference_to
from ml.config.construction import Build
from ml.config.effects import Effects
from ml.config.errors import ConfigError, Problem
from ml.config.names import Names
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
LEFT_OUT_SUFFIX = f" = %{LEFT_OUT.name}"
_HEADER = "# The operative config of a run: every value that took effect. Later bindings override it.\n"


def fingerprint(operative: str) -> str:
    """Returns the SHA-256 of an operative config, equal for equal runs.

    Options without effect, and options that change no result of a run, are omitted.
    """
    text = "\n\n".join(_sections_with_effect(operative)) + "\n"
    return hashlib.sha256(text.encode()).hexdigest()


def _sections_with_effect(operative: str) -> Iterator[str]:
    for section in operative.removesuffix("\n").split("\n\n"):
        lines = [line for line in section.splitlines() if is_heading(line) or not _has_no_effect(line)]
        if any(not is_heading(line) for line in lines) or section.startswith(_HEADER.rstrip()):
            yield "\n".join(lines)


def _has_no_effect(line: str) -> bool:
    key, _, _ = line.partition(" = ")
    return line.endswith(LEFT_OUT_SUFFIX) or is_neutral(key.rpartition("/")[2])


def is_heading(line: str) -> bool:
    """Returns whether a line of an operative config is empty, a comment or the start of a layer."""
    return not line or line.startswith(("#", "juniper.layer = "))


def difference(ours: str, theirs: str) -> list[str]:
    """Returns the lines with effect that differ between two operative configs, `-` for ours and `+` for theirs."""

    def statements(operative: str) -> dict[str, None]:
        lines = "\n".join(_sections_with_effect(operative)).splitlines()
        return {line: None for line in lines if not is_heading(line)}

    mine, other = statements(ours), statements(theirs)
    removed = [line for line in mine if line not in other]
    added = [line for line in other if line not in mine]
    return [f"- {line}" for line in removed] + [f"+ {line}" for line in added]


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
        value = binding.value if binding in effects.effective else LEFT_OUT
        sections[section].append(writer.line(binding.key_by(names.spell), value, str(binding.location)))
    if writer.problems:
        raise ConfigError(writer.problems)
    parts = [_HEADER, *(f"{line}\n" for line in sorted({i.text for i in imports}))]
    if hashes := {component.file: component.sha256 for component in components}:
        parts.append(f"{CODE_KEY} = {text_of(hashes)}\n")
    for layer, lines in sections.items():
        if lines:
            body = "\n".join(lines)
            parts.append(f"\n# {_TITLES[layer]}.\njuniper.layer = '{layer.name.lower()}'\n{body}\n")
    return "".join(parts)


class _Writer:
    """Writes the lines of one build."""

    def __init__(self, calls: list[Call], names: Names):
        self._spell = names.spell
        self.problems: list[Problem] = []
        self.built: dict[Configurable, list[Call]] = {}
        for call in calls:
            self.built.setdefault(call.info, []).append(call)

    def line(self, key: str, value: object, origin: str) -> str:
        """Returns `key = value`, or reports that the value of `origin` cannot be written."""
        try:
            return f"{key} = {text_of(value, self._spell)}"
        except UnwritableError as error:
            self.problems.append(Problem(None, f"{key} ({origin}): {error}"))
            return ""

    def default(self, info: Configurable, parameter: str) -> list[str]:
        """Returns the line for a default of the code if a component uses it."""
        for call in self.built[info]:
            if _source(call, parameter) is Layer.DEFAULT:
                saved = call.plan.weak.get(parameter)
                value = saved.binding.value if saved else info.parameters[parameter].default
                self._check(info, parameter, value)
                return [self.line(f"{self._spell(info)}.{parameter}", value, "its default")]
        return []

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
                    text = self.line(
                        "", call.suggestions.value(parameter), f"{call.info.name}.{parameter}, by its parent"
                    )
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
