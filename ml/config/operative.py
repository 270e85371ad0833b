"""The operative config: every value that took effect, written so that it loads back to the same (rule 9).

It has a section a layer, weakest first. What a user set stands as the user scoped it; what was a default stays weaker
than any later binding. A saved parent's default carries the shortest scope that reaches just the modules that had it,
so the length of the file does not grow with the number of equal blocks.
"""

import hashlib
from collections.abc import Iterable

import gin

from ml.config.configurable import EMPTY, Configurable
from ml.config.construction import Build
from ml.config.errors import ConfigError, Problem
from ml.config.plans import Call
from ml.config.provenance import text_of
from ml.config.scopes import PathIndex, compress, match, parse_range, without_indices
from ml.config.statements import Binding, Import, Layer
from ml.config.values import UnwritableError

_TITLES = {
    Layer.DEFAULT: "Defaults of the code",
    Layer.PARENT: "Defaults that parents hand to their children",
    Layer.IMPORTED: "Imported with a checkpoint",
    Layer.FILE: "Set by configuration files and flags",
}
_HEADER = "# The operative config of a run: every value that took effect. Later bindings override it.\n"


def fingerprint(operative: str) -> str:
    """The SHA-256 of an operative config."""
    return hashlib.sha256(operative.encode()).hexdigest()


def operative_config(build: Build, effective: set[Binding], imports: Iterable[Import]) -> str:
    """The operative config of a build that kept its calls.

    Raises:
        ConfigError: names each value that no text can hold.
    """
    writer = _Writer(build.calls)
    sections = {layer: [] for layer in _TITLES}
    for info in sorted(writer.built, key=lambda info: (info.name, info.selector)):
        for parameter in info.parameters:
            sections[Layer.DEFAULT] += writer.default(info, parameter)
            sections[Layer.PARENT] += writer.parents(info, parameter)
    for binding in _canonical_order(b for b in effective if b.layer >= Layer.IMPORTED):
        section = Layer.IMPORTED if binding.layer is Layer.IMPORTED else Layer.FILE
        sections[section].append(writer.line(binding.key, binding.value, str(binding.location)))
    if writer.problems:
        raise ConfigError(writer.problems)
    parts = [_HEADER, *(f"{line}\n" for line in sorted({i.text for i in imports}))]
    for layer, lines in sections.items():
        if lines:
            body = "\n".join(lines)
            parts.append(f"\n# {_TITLES[layer]}.\njuniper.layer = '{layer.name.lower()}'\n{body}\n")
    return "".join(parts)


class _Writer:
    """Writes the lines of one build."""

    def __init__(self, calls: list[Call]):
        self.problems: list[Problem] = []
        self.built: dict[Configurable, list[Call]] = {}
        for call in calls:
            self.built.setdefault(call.info, []).append(call)

    def line(self, key: str, value: object, origin: str) -> str:
        """`key = value`, or a problem that names the origin."""
        try:
            return f"{key} = {text_of(value)}"
        except UnwritableError as error:
            self.problems.append(Problem(None, f"{key} ({origin}): {error}"))
            return ""

    def default(self, info: Configurable, parameter: str) -> list[str]:
        """The line for a default of the code, if some module uses it."""
        for call in self.built[info]:
            if _source(call, parameter) is Layer.DEFAULT:
                saved = call.plan.weak.get(parameter)
                value = saved.binding.value if saved else info.parameters[parameter].default
                return [self.line(f"{info.name}.{parameter}", value, "its default")]
        return []

    def parents(self, info: Configurable, parameter: str) -> list[str]:
        """The lines for what parents suggested to their children, where that was taken."""
        values: dict[str, set[tuple[str, ...]]] = {}
        others: set[tuple[str, ...]] = set()
        for call in self.built[info]:
            if _source(call, parameter) is Layer.PARENT:
                saved = call.plan.strong.get(parameter)
                value = saved.binding.value if saved else call.defaults[parameter]
                text = self.line("", value, f"{info.name}.{parameter}, set by its parent")
                values.setdefault(text, set()).add(call.path)
            elif not _set_by_binding(call, parameter):
                others.add(call.path)
        lines = []
        for text, paths in values.items():
            elsewhere = others.union(*(p for t, p in values.items() if t != text))
            lines += [f"{scope}/{info.name}.{parameter}{text}" for scope in _scopes(paths, elsewhere)]
        return sorted(lines)


def _source(call: Call, parameter: str) -> Layer | None:
    """The section that holds a parameter's value: of the code, of a parent, or neither."""
    if parameter in call.arguments or parameter in call.derived:
        return None
    strong = call.plan.strong.get(parameter)
    if strong is not None:
        return Layer.PARENT if strong.binding.layer is Layer.PARENT else None
    if parameter in call.plan.weak:
        return Layer.DEFAULT
    if parameter in call.defaults:
        return Layer.PARENT
    default = call.info.parameters[parameter].default
    return None if default is EMPTY or default is gin.REQUIRED else Layer.DEFAULT


def _set_by_binding(call: Call, parameter: str) -> bool:
    """Whether a saved default of a parent would make no difference to a call."""
    strong = call.plan.strong.get(parameter)
    return parameter in call.arguments or (strong is not None and strong.binding.layer > Layer.PARENT)


def _scopes(wanted: set[tuple[str, ...]], others: set[tuple[str, ...]]) -> list[str]:
    """The shortest scopes that reach each wanted path and none of the others."""
    found: set[str] = set()
    by_kind: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for path in wanted:
        by_kind.setdefault(without_indices(path), []).append(path)
    kinds_of_others = {without_indices(path) for path in others}
    for kind, paths in by_kind.items():
        scope = next((kind[-n:] for n in range(1, len(kind) + 1) if not _reaches(kind[-n:], kinds_of_others)), None)
        found.update(["/".join(scope)] if scope else compress(paths))
    return sorted(found)


def _reaches(scope: tuple[str, ...], paths: set[tuple[str, ...]]) -> bool:
    index = PathIndex({scope})
    return any(match(scope, index.reduce(path)) is not None for path in paths)


def _canonical_order(bindings: Iterable[Binding]) -> list[Binding]:
    """An order that does not depend on that of files, except between ranges, where the later binding wins a tie."""

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
