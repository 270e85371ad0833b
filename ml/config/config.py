"""A configuration as a value: loaded, checked, frozen, and able to say where everything in it came from."""

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ml.config.analysis import Analysis, Analyzer
from ml.config.built import Built
from ml.config.components import Component
from ml.config.configurable import Configurable, is_outdated
from ml.config.construction import Build
from ml.config.effects import Effects, find_effects
from ml.config.errors import ConfigError, Location, Problem, did_you_mean
from ml.config.imported import ImportedValue, imported_statements
from ml.config.names import Names
from ml.config.operative import difference, fingerprint, operative_config
from ml.config.parsing import Reader, SearchPath
from ml.config.plans import parts_of
from ml.config.provenance import Record, records, value_at
from ml.config.python_values import python_statements
from ml.config.statements import Binding, Layer, MacroDefinition

Bindings = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]


class Source(NamedTuple):
    """All that a configuration is made from, without what it is checked against: it can be pickled."""

    name: str
    reader: Reader
    root: Callable[[], Any]
    check: Callable[[Any, Built], list[Problem]] | None
    allow_unused_bindings: bool
    components: tuple[Component, ...]


@dataclass(frozen=True)
class Config:
    """A checked configuration; nothing changes it any more.

    Attributes:
        name: of the first file, without its ending.
        operative: the text of operative_config.gin.
        warnings: bindings that cannot be fully checked, and those without effect, where these are allowed.
        components: the sources of the modules that it imports and that are not installed.
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
        """The SHA-256 of the operative config: equal for equal runs."""
        return fingerprint(self.operative)

    def build(self, root: Callable[[], Any]) -> Any:
        """Calls `root` with this configuration in force in this thread, and with no other.

        Raises:
            ConfigError: where something that it builds was defined again since it was checked.
        """
        outdated = sorted({call.info.name for call in self._checked.calls if is_outdated(call.info)})
        if outdated:
            message = f"{', '.join(outdated)} was defined again since this configuration was loaded: load it again"
            raise ConfigError([message])
        with Build(self._analysis.bindings):
            return root()

    def value(self, path: str, name: str) -> Record:
        """Who set one parameter at one place: `value("decoder/block_3/mixer/query", "Linear.bias")`.

        Args:
            path: the place, written as a scope.
            name: the configurable that is built there, and its parameter.

        Raises:
            UserError: where nothing of that name is built there.
        """
        return value_at(list(self.records()), path, name)

    def records(self) -> Iterator[Record]:
        """Who set what: a record for every parameter of everything that is built."""
        return records(self._checked.calls, self._analysis.unset, self._names.spell)

    def provenance(self) -> dict[str, Any]:
        """What provenance.json holds."""
        return {"fingerprint": self.fingerprint, "records": [record.as_json() for record in self.records()]}

    def as_imported(self, belongs: Callable[[Configurable], bool], source: str) -> list[ImportedValue]:
        """This configuration as the imported layer of another, as far as it concerns certain parts.

        What was set here is imported; what was a default, of the code or of a parent, stays one.

        Args:
            belongs: whether a configurable is one of the parts; what is built inside a part belongs to it.
            source: what locations call this configuration.
        """
        parts = parts_of(self._checked.calls, belongs)
        kept = self._effects.effective & {c.binding for call in parts for c in call.plan.strong.values()}
        bindings = [b for b in self._analysis.bindings if b in kept or belongs(b.configurable)]
        return [ImportedValue(b.key_by(_full_name), b.value, source, min(b.layer, Layer.IMPORTED)) for b in bindings]

    @property
    def text(self) -> str:
        """What was set and nothing else, by layer, with the place of each statement: the text of config.gin."""
        return _config_text(self._analysis, self._effects, self._names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __copy__(self) -> "Config":
        return self

    def __deepcopy__(self, memo: dict) -> "Config":
        return self  # nothing changes it

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
    trust_code: bool = False,
) -> Config:
    """Loads files and bindings, checks all of them, and builds once to see that each takes effect.

    Args:
        files: names of gin files; later ones are stronger.
        bindings: gin statements that come after the files; or Python values by their keys, `{"Linear.bias": False}`.
        root: builds everything that a run builds, from nothing but the configuration; it must touch no file and
            allocate nothing.
        check: finds what is wrong with what `root` built, which it may change; called where nothing else is wrong.
        search_path: folders in which files are looked for after the working folder.
        shipped: the folder of the configurations that come with the program, looked in last.
        imported: values of a pretrained checkpoint; weaker than any file.
        allow_unused_bindings: makes bindings that have no effect warnings instead of errors.
        flag: what locations call an element of `bindings`.
        trust_code: whether modules that a run imported are taken from the copy in its folder.

    Raises:
        ConfigError: with everything that is wrong.
    """
    files = [files] if isinstance(files, str | Path) else list(files)
    bindings = [bindings] if isinstance(bindings, str | Mapping) else list(bindings)
    reader = Reader(SearchPath([Path(folder) for folder in search_path], shipped), trust_code)
    reader.statements += imported_statements(list(imported))
    for file in files:
        reader.read_file(str(file))
    for index, text in enumerate(bindings):
        if isinstance(text, Mapping):
            statements, problems = python_statements(text, "bindings")
            reader.statements += statements
            reader.problems += problems
        else:
            reader.read_text(text, f"{flag}[{index}]", Layer.FLAG)
    name = Path(files[0]).stem if files else "bindings"
    components = tuple(reader.check_code())
    return _checked(Source(name, reader, root, check, allow_unused_bindings, components))


def _checked(source: Source) -> Config:
    """Checks statements, and builds once to see that each takes effect.

    Raises:
        ConfigError: with everything that is wrong.
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
    """A configuration in another process: checked again there, against the code that it finds.

    Raises:
        ConfigError: where that code makes another run of it.
    """
    for module in modules:
        importlib.import_module(module)
    config = _checked(source)
    if config.fingerprint != fingerprint(operative):
        changed = "\n".join(difference(operative, config.operative))
        raise ConfigError([f"the code of this process makes another run of the configuration:\n{changed}"])
    return config


def _run(root: Callable[[], Any], build: Build) -> Exception | None:
    """Builds everything; returns what stopped it, if anything did. Problems with parameters that it collects do not."""
    try:
        with build:
            root()
    except Exception as error:  # after a problem any error may follow from it; without one it is what it is
        return error
    return None


def _full_name(configurable: Configurable) -> str:
    return configurable.selector


def _in_order(problems: list[Problem], files: list[str]) -> list[Problem]:
    """Problems by file, in the order in which files were named, then by line; those without a place last."""

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
    lines = ["# What was set, in the order in which it was read. The operative config beside this holds every value."]
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
            lines.append(f"juniper.layer = '{layer.name.lower()}'")
        text = statement.text(written=True, spell=names.spell)
        if isinstance(statement, Binding) and (swap := effects.left_out.get(statement)) is not None:
            lines.append(f"# left out: {_verb(statement, swap)} by {swap.text(spell=names.spell)} ({swap.location})")
            lines.append(f"# {text:<58}  # {statement.location}")
        else:
            lines.append(f"{text:<60}  # {statement.location}")
    return "\n".join(lines) + "\n"


__all__ = ["Config", "ImportedValue", "did_you_mean", "load"]
