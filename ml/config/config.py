"""A configuration as a value: loaded, checked and frozen, with the provenance of every parameter."""

import copy
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ml.config.analysis import Analysis, Analyzer
from ml.config.built import Built
from ml.config.comparison import difference, fingerprint
from ml.config.components import Component
from ml.config.configurable import Configurable, is_outdated
from ml.config.construction import Build
from ml.config.copies import all_calls
from ml.config.effects import Effects, find_effects
from ml.config.errors import ConfigError, Location, Problem, did_you_mean
from ml.config.garbage import no_garbage_collection
from ml.config.imported import ImportedValue, imported_statements
from ml.config.migrations import earlier_defaults
from ml.config.names import Names
from ml.config.operative import operative_config
from ml.config.operative_lines import LAYER_LINE
from ml.config.parsing import Reader, SearchPath
from ml.config.plans import parts_of
from ml.config.provenance import Record, records, value_at
from ml.config.python_values import python_statements
from ml.config.saved_origins import origins_of
from ml.config.statements import Binding, Layer, MacroDefinition

Bindings = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]


class Source(NamedTuple):
    """The inputs of a configuration, without the code that it is checked against. Can be pickled."""

    name: str
    reader: Reader
    root: Callable[[], Any]
    check: Callable[[Any, Built], list[Problem]] | None
    allow_unused_bindings: bool
    components: tuple[Component, ...]


@dataclass(frozen=True)
class Config:
    """A checked, immutable configuration.

    Attributes:
        name: The name of the first file, without its suffix.
        operative: The text of operative_config.gin.
        warnings: Bindings that cannot be fully checked, and with `allow_unused_bindings` those without effect.
        components: The sources of the imported modules that are not installed.
    """

    name: str
    operative: str
    warnings: tuple[Problem, ...]
    components: tuple[Component, ...]
    _source: Source = field(repr=False)
    _analysis: Analysis = field(repr=False)
    _checked: Build = field(repr=False)
    _effects: Effects = field(repr=False)
    _names: Names = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the operative config, equal for equal runs."""
        return fingerprint(self.operative)

    def build(self, root: Callable[[], Any]) -> Any:
        """Calls `root` with this configuration, and no other, active in this thread, and returns the result.

        Raises:
            ConfigError: A configurable that it builds has been redefined since the configuration was checked.
        """
        outdated = sorted({call.info.name for call in self._checked.calls if is_outdated(call.info)})
        if outdated:
            message = f"{', '.join(outdated)} was redefined since this configuration was loaded: load it again"
            raise ConfigError([message])
        with Build(self._analysis.bindings):
            return root()

    def value(self, path: str, name: str) -> Record:
        """Returns the value and source of a parameter: `value("decoder/block_3/mixer/query", "Linear.bias")`.

        Args:
            path: The place, written as a scope.
            name: The configurable that is built there, and its parameter.

        Raises:
            UserError: No such configurable or parameter exists there.
        """
        return value_at(list(self.records()), path, name)

    def records(self) -> Iterator[Record]:
        """Returns the value and source of every parameter of every component."""
        return records(all_calls(self._checked.calls), self._analysis.unset, self._names.spell)

    def provenance(self) -> dict[str, Any]:
        """Returns the content of provenance.json."""
        idle = [binding for binding in self._effects.without_effect if binding.layer is Layer.IMPORTED]
        kept = self._effects.effective.union(idle)
        statements = origins_of([b for b in self._analysis.bindings if b in kept], self._names.spell)
        records = [record.as_json() for record in self.records()]
        return {"fingerprint": self.fingerprint, "statements": statements, "records": records}

    def as_imported(self, belongs: Callable[[Configurable], bool], source: str) -> list[ImportedValue]:
        """Returns the values of certain components as the imported layer of another configuration.

        Values that were set are imported as set. Defaults, of the code or of a parent, are imported as defaults.

        Args:
            belongs: Returns whether a configurable is one of the components. Everything built inside one is included.
            source: The name of this configuration in locations.
        """
        parts = parts_of(self._checked.calls, belongs)
        kept = self._effects.effective & {c.binding for call in parts for c in call.plan.strong.values()}
        bindings = [b for b in self._analysis.bindings if b in kept or belongs(b.configurable)]
        return [ImportedValue(b.key_by(_full_name), b.value, source, min(b.layer, Layer.IMPORTED)) for b in bindings]

    def imported_layer(self) -> list[ImportedValue]:
        """Returns the values that this configuration imported, to import them again."""
        found = [b for b in self._analysis.bindings if b.layer is Layer.IMPORTED]
        return [ImportedValue(b.key_by(_full_name), b.value, b.location.origin) for b in found]

    def rebound(self, place: tuple[str, ...], values: Mapping[str, Any], location: str) -> "Config":
        """Returns this configuration with other values of the component at a place, set last.

        Args:
            place: The first scope of the component; empty for the root.
            values: The values by parameter, literals.
            location: The place of the new bindings.

        Raises:
            ConfigError: The values do not fit.
        """
        call = next(call for call in self._checked.calls if call.path[:1] == place)
        reader = copy.copy(self._source.reader)
        reader.statements = list(reader.statements)
        for parameter, value in values.items():
            bound = call.plan.strong.get(parameter)
            scope = bound.binding.scope if bound is not None and bound.binding.layer.explicit else ()
            key = "/".join((*scope, f"{self._names.spell(call.info)}.{parameter}"))
            reader.read_text(f"{key} = {value!r}", location, Layer.FLAG)
        with no_garbage_collection():
            return _checked(self._source._replace(reader=reader))

    def with_defaults_of(self, operative: str) -> "Config":
        """Returns this configuration with the defaults of the release that wrote an operative config.

        Only parameters with a default here take them, and only where that of this release acts otherwise.

        Args:
            operative: The operative config of a run, of any release.

        Raises:
            ConfigError: The values do not fit.
        """
        built = {f"{record.configurable}.{record.parameter}" for record in self.records()}
        kept = {key: value for key, value in earlier_defaults(operative).items() if key in built}
        if not kept:
            return self
        reader = copy.copy(self._source.reader)
        reader.statements = list(reader.statements)
        for key, value in kept.items():
            reader.read_text(f"{key} = {value}", "an earlier release", Layer.DEFAULT)
        with no_garbage_collection():
            return _checked(self._source._replace(reader=reader))

    @property
    def text(self) -> str:
        """The text of config.gin: the values that were set, by layer, with the place of each statement."""
        return _config_text(self._analysis, self._effects, self._names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __copy__(self) -> "Config":
        return self

    def __deepcopy__(self, memo: dict) -> "Config":
        return self  # immutable

    def __reduce__(self):
        built = {call.info for call in self._checked.calls}
        modules = {info.constructor.__module__ for info in built if not info.imported} - {"__main__"}
        return _restored, (self._source, sorted(modules), self.operative)


def load(
    files: str | Path | Sequence[str | Path] = (),
    bindings: Bindings = (),
    *,
    root: Callable[[], Any],
    check: Callable[[Any, Built], list[Problem]] | None = None,
    search_path: Sequence[str | Path] = (),
    shipped: Path | None = None,
    imported: Iterable[ImportedValue] = (),
    allow_unused_bindings: bool = False,
    flag: str = "--gin_bindings",
    flags: Sequence[tuple[str, str]] = (),
    trust_code: bool = False,
) -> Config:
    """Loads files and bindings, checks all of them, and builds once to verify that each takes effect.

    Args:
        files: The gin files; later ones override earlier ones.
        bindings: Gin statements that are read after the files, or Python values by key, `{"Linear.bias": False}`.
        root: Builds the whole run from the configuration alone, without reading files or allocating memory.
        check: Returns the problems of the result of `root`, which it may change; called if there are no other problems.
            None checks nothing.
        search_path: The folders that are searched for files after the working folder.
        shipped: The folder of the configurations that come with the program, searched last; None if there are none.
        imported: The values of a pretrained checkpoint; any file overrides them.
        allow_unused_bindings: Whether bindings without effect are warnings instead of errors.
        flag: The name of `bindings` in locations.
        flags: Gin statements of other flags, each with the name of its flag; read between the files and `bindings`.
        trust_code: Whether modules that a run imported are executed from the copy in its folder.

    Raises:
        ConfigError: The configuration has errors; it lists all of them.
    """
    files = [files] if isinstance(files, str | Path) else list(files)
    bindings = [bindings] if isinstance(bindings, str | Mapping) else list(bindings)
    reader = Reader(SearchPath([Path(folder) for folder in search_path], shipped), trust_code)
    reader.statements += imported_statements(list(imported))
    for file in files:
        reader.read_file(str(file))
    for other, statement in flags:
        reader.read_text(statement, other, Layer.FLAG)
    for index, text in enumerate(bindings):
        if isinstance(text, Mapping):
            statements, problems = python_statements(text, "bindings")
            reader.statements += statements
            reader.problems += problems
        else:
            reader.read_text(text, f"{flag}[{index}]", Layer.FLAG)
    name = Path(files[0]).stem if files else "bindings"
    if name == "operative_config":
        folder = Path(files[0]).absolute().parent  # of its run, or of a part of it
        name = (folder.parents[1] if folder.parent.name in ("checkpoints", "segments") else folder).name
    components = tuple(reader.check_code())
    with no_garbage_collection():
        return _checked(Source(name, reader, root, check, allow_unused_bindings, components))


def _checked(source: Source) -> Config:
    """Checks statements, and builds once to verify that each takes effect.

    Raises:
        ConfigError: The configuration has errors; it lists all of them.
    """
    name, reader, root, check, allow_unused_bindings, components = source
    names = Names(reader.importer.registered())
    analysis = Analyzer(reader.statements, reader.lost, names, reader.shipped).run()
    problems = reader.problems + analysis.problems
    if reader.lost.everything:
        raise ConfigError(_in_order(problems, reader.files))

    build = Build(analysis.bindings, keep_calls=True, collect=True)
    product: list[Any] = []
    failure = _run(lambda: product.append(root()), build)
    found = failure.problems if isinstance(failure, ConfigError) else build.problems
    problems += reader.lost.without_consequences(found)
    effects = Effects()
    if failure is None and build.is_complete:
        effects = find_effects(analysis.bindings, build, lambda other: _run(root, other), analysis.unset)
    elif failure is not None and not problems:
        raise failure
    idle = analysis.idle + ([] if reader.lost.a_part else effects.idle)
    operative = ""
    if failure is None and not problems:
        try:
            operative = operative_config(build, effects, analysis.imports, names, components)
        except ConfigError as error:
            problems += error.problems
    if check is not None and failure is None and not problems:
        problems += check(product[0], Built(build.calls))
    if problems or (idle and not allow_unused_bindings):
        raise ConfigError(_in_order(problems + ([] if allow_unused_bindings else idle), reader.files))
    warnings = (*analysis.warnings, *idle)
    return Config(name, operative, warnings, components, source, analysis, build, effects, names)


def _restored(source: Source, modules: list[str], operative: str) -> Config:
    """Restores a configuration in another process, where it is checked again against the code of that process.

    Raises:
        ConfigError: The operative config differs with that code.
    """
    for module in modules:
        importlib.import_module(module)
    with no_garbage_collection():
        config = _checked(source)
    if config.fingerprint != fingerprint(operative):
        changed = "\n".join(difference(operative, config.operative))
        raise ConfigError([f"the operative config differs with the code of this process:\n{changed}"])
    return config


def _run(root: Callable[[], Any], build: Build) -> Exception | None:
    """Builds everything. Returns the exception that stopped the build, or None; collected problems do not stop it."""
    try:
        with build:
            root()
    except Exception as error:  # any error can follow from an earlier problem; the caller decides
        return error
    return None


def _full_name(configurable: Configurable) -> str:
    return configurable.selector


def _in_order(problems: list[Problem], files: list[str]) -> list[Problem]:
    """The problems by file, in the order in which files were read, then by line; those without a place last."""

    def key(problem: Problem) -> tuple:
        location = problem.location or Location("")
        known = location.source in files
        return (
            not known,
            files.index(location.source) if known else not location.source,
            location.source,
            location.line or 0,
        )

    return sorted(dict.fromkeys(problems), key=key)


def _verb(binding: Binding, by: Binding) -> str:
    same = (binding.configurable, binding.parameter) == (by.configurable, by.parameter)
    return "shadowed" if same else "replaced"


def _config_text(analysis: Analysis, effects: Effects, names: Names) -> str:
    lines = ["# The values that were set, in the order in which they were read. operative_config.gin has all values."]
    lines += [statement.text for statement in analysis.imports]
    layer = source = None
    unset = [binding for unset in analysis.unset for binding in (*unset.removed, unset.binding)]
    statements: list[Binding | MacroDefinition] = [*analysis.bindings, *analysis.macros, *unset]
    for statement in sorted(statements, key=lambda s: s.order):
        if statement.source_name != source or statement.layer is not layer:
            source = statement.source_name
            lines += ["", f"# From {source}"]
        if statement.layer is not layer:
            layer = statement.layer
            lines.append(f"{LAYER_LINE}'{layer.name.lower()}'")
        text = statement.text(written=True, spell=names.spell)
        if isinstance(statement, Binding) and (swap := effects.left_out.get(statement)) is not None:
            lines.append(f"# left out: {_verb(statement, swap)} by {swap.text(spell=names.spell)} ({swap.location})")
            lines.append(f"# {text:<58}  # {statement.location}")
        else:
            lines.append(f"{text:<60}  # {statement.location.origin}")
    return "\n".join(lines) + "\n"


__all__ = ["Config", "ImportedValue", "did_you_mean", "load"]
