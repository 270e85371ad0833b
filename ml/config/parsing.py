"""Files and flags to statements, with gin's grammar. Keeps all errors; finds included files beside their includer."""

from pathlib import Path
from typing import Any, NamedTuple

from gin import config_parser

from ml.config.code import Code, Places
from ml.config.components import Component, Importer
from ml.config.errors import Location, Problem, did_you_mean
from ml.config.grammar import Unreadable, statements
from ml.config.limits import unusable
from ml.config.lost import Lost
from ml.config.migrations import migrated
from ml.config.operative_lines import LAYER_LINE, NEUTRAL_SUFFIX
from ml.config.saved_origins import read_origins
from ml.config.search_path import SearchPath
from ml.config.statements import CODE_KEY, Layer
from ml.config.syntax import Assignment, Include

CODE_STATEMENT = tuple(CODE_KEY.split("."))
LAYER_STATEMENT = ("juniper", "layer")  # `juniper.layer = 'default'`: the layer of the rest of the file
_WITHOUT_PLACE = ("singleton", "gin.singleton")  # the scope is the name of the shared object, not a place


class RawStatement(NamedTuple):
    """A binding, or a macro definition if `parameter` is empty.

    Attributes:
        scope: The scope, outermost first.
        name: The configurable or the macro.
        parameter: The parameter; empty for a macro.
        value: The value, with names not looked up.
        layer: The layer.
        location: The place.
        text: The statement as written.
        entries: The keys in brackets after the parameter.
        operator: `=`, `+=` or `-=`.
    """

    scope: tuple[str, ...]
    name: str
    parameter: str
    value: Any
    layer: Layer
    location: Location
    text: str
    entries: tuple[Any, ...] = ()
    operator: str = "="


class RawImport(NamedTuple):
    """An import that succeeded."""

    text: str
    module: str
    location: Location


class Reader:
    """Reads files and flags in order, each file once under each scope, and keeps all statements and problems.

    Args:
        search_path: The folders in which files are searched.
        trust_code: Whether modules are imported from the copies in the folders of runs.

    Attributes:
        importer: Imports the modules.
        shipped: The files that come with Juniper.
        statements: The statements, in order.
        problems: The errors.
        files: The files, in the order in which they were read.
        lost: The statements lost to an error.
    """

    def __init__(self, search_path: SearchPath, trust_code: bool = False):
        self.search_path = search_path
        self.importer = Importer()
        self.shipped: set[str] = set()
        self._code = Code(search_path, trust_code)
        self.statements: list[RawStatement | RawImport] = []
        self.problems: list[Problem] = []
        self.files: list[str] = []
        self.lost = Lost()
        self._read: dict[tuple[Path, tuple[str, ...]], Location | None] = {}

    def read_file(
        self,
        name: str,
        location: Location | None = None,
        including: tuple[Path, ...] = (),
        under: tuple[str, ...] = (),
    ) -> None:
        """Reads a file and the files that it includes.

        Args:
            name: The name given by the user or by the include statement.
            location: The place of the include statement; None for a file that the user names.
            including: The files being read, outermost first.
            under: The scope to put before that of each binding. Macros keep their names.
        """
        path = self.search_path.find(name, including[-1] if including else None)
        if path is None:
            hint = self.search_path.suggest(name, including[-1] if including else None)
            self._missing(location, f"there is no configuration file {name!r}{hint}")
            return
        if path.resolve() in [other.resolve() for other in including]:
            chain = " includes ".join(self.search_path.display(p) for p in (*including, path))
            self.problems.append(Problem(location, f"include cycle: {chain}"))
            return
        shown = self.search_path.display(path)
        once = (path.resolve(), under)
        if once in self._read:
            if location is None:
                self._named_again(shown, self._read[once])
            return
        self._read[once] = location
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            self._missing(location, f"cannot read {shown}: {error}")
            return
        self.files.append(shown)
        if self.search_path.is_shipped(path):
            self.shipped.add(shown)
        self.read_text(text, shown, Layer.FILE, including=(*including, path), under=under)

    def _missing(self, location: Location | None, message: str, statement: str = "") -> None:
        self.lost.everything = True
        self.problems.append(Problem(location, message, statement))

    def _named_again(self, shown: str, included_at: Location | None) -> None:
        """Reports a file that a user names after it was read, since its values do not apply at the later place."""
        how = f"is already included ({included_at})" if included_at else "is given twice"
        message = (
            f"{shown} {how}, and a file is read once, where it comes first: put it before the others, or remove it"
        )
        self.problems.append(Problem(None, message))

    def read_text(
        self, text: str, source: str, layer: Layer, including: tuple[Path, ...] = (), under: tuple[str, ...] = ()
    ) -> None:
        """Reads statements from text.

        Args:
            text: The text.
            source: The name of the text in locations.
            layer: The layer of its statements.
            including: The files being read, outermost first; empty for a flag.
            under: The scope to put before that of each binding.
        """
        lines = text.splitlines()
        numbered = including or len([line for line in lines if line.strip()]) > 1
        saved = {}
        if including and f"\n{LAYER_LINE}'default'" in text:  # an operative config
            saved = read_origins(including[-1], text)
            text = self._migrated(text, source)
        for number, statement in statements(text):
            quoted = lines[number - 1] if number <= len(lines) else ""
            location = Location(
                source, number if numbered else None, saved=saved.get(quoted.removesuffix(NEUTRAL_SUFFIX))
            )
            if isinstance(statement, Unreadable):
                if statement.lost:
                    self.lost.add_text(statement.lost)
                self.problems.append(Problem(location, statement.message, quoted))
            elif isinstance(statement, Include):
                self.read_file(statement.filename, location, including, (*under, *statement.scope))
            elif isinstance(statement, config_parser.ImportStatement):
                self._import(statement, location, including)
            elif isinstance(statement, Assignment):
                if (statement.selector, statement.arg_name) == LAYER_STATEMENT:
                    layer = self._layer(statement, layer, location, quoted, under)
                elif (statement.selector, statement.arg_name) == CODE_STATEMENT:
                    self._expect_code(statement.value, location, quoted, including)
                else:
                    self._binding(statement, layer, location, quoted, under)

    def _migrated(self, text: str, source: str) -> str:
        lines = text.splitlines()
        text, problems = migrated(text)
        for number, message in problems:
            self.problems.append(Problem(Location(source, number), message, lines[number - 1]))
        return text

    def _binding(
        self, statement: Assignment, layer: Layer, location: Location, quoted: str, under: tuple[str, ...]
    ) -> None:
        scope = tuple(part for part in statement.scope.split("/") if part)
        name, parameter = statement.selector, statement.arg_name
        if name in ("macro", "gin.macro") and parameter == "value" and scope:  # `NAME/macro.value = 1`
            scope, name, parameter = scope[:-1], scope[-1], ""
        if problem := unusable(statement.value):
            what = f"{name}.{parameter}" if parameter else f"macro {'/'.join((*scope, name))}"
            self.problems.append(Problem(location, f"{what} {problem}", quoted))
            self.lost.add_text(quoted)
            return
        if parameter and name not in _WITHOUT_PLACE:
            scope = (*under, *scope)
        value, entries, operator = statement.value, statement.entries, statement.operator
        self.statements.append(RawStatement(scope, name, parameter, value, layer, location, quoted, entries, operator))

    def _layer(
        self, statement: Assignment, current: Layer, location: Location, quoted: str, under: tuple[str, ...]
    ) -> Layer:
        names, value = [layer.name.lower() for layer in Layer], statement.value
        if value in names:
            layer = Layer(names.index(value))
            if not under or layer.explicit:
                return layer
            message = f"an operative config cannot be included under a scope, here {'/'.join(under)!r}"
            self.problems.append(Problem(location, message, quoted))
            return layer
        message = f"juniper.layer must be one of {', '.join(names)}, not {value!r}{did_you_mean(str(value), names)}"
        self.problems.append(Problem(location, message, quoted))
        return current

    def _import(self, statement: config_parser.ImportStatement, location: Location, including: tuple[Path, ...]):
        name, text = statement.module, statement.format()
        if name.startswith("__gin__"):
            message = "dynamic registration is not supported: import the module and make its classes configurable"
            self._missing(location, message, text)
            return
        places = self._code.places(including)
        try:
            self._import_module(statement, places)
        except ModuleNotFoundError as error:
            itself = error.name is not None and f"{name}.".startswith(f"{error.name}.")
            message = places.not_found(name) if itself else f"cannot import {name}: {error}"
            self._missing(location, message, text)
        except Exception as error:  # the imported module is the user's code and can raise anything
            self._missing(location, f"cannot import {name}: {type(error).__name__}: {error}", text)
        else:
            self.statements.append(RawImport(text, name, location))

    def _import_module(self, statement: config_parser.ImportStatement, places: Places) -> None:
        try:
            self.importer.load(statement.module, places.folders, places.forbidden)
        except ModuleNotFoundError as error:
            module, _, attribute = statement.module.rpartition(".")
            if not statement.is_from or error.name != statement.module:
                raise
            if not hasattr(self.importer.load(module, places.folders, places.forbidden), attribute):
                raise

    def _expect_code(self, value: Any, location: Location, quoted: str, including: tuple[Path, ...]) -> None:
        if not isinstance(value, dict) or not all(isinstance(part, str) for pair in value.items() for part in pair):
            message = f"{CODE_KEY} must be a dict of SHA-256 hashes by file, such as {{'my_layers.py': 'ab12...'}}"
            self.problems.append(Problem(location, message, quoted))
        else:
            self._code.expect(value, location, including)

    def check_code(self) -> list[Component]:
        """Returns the sources of all imported modules, and reports those that differ from the saved run's."""
        components = self.importer.components()
        if problems := self._code.misfits(components):
            self.lost.everything = True
            self.problems += problems
        return components
