"""From files and flags to statements: gin's own grammar, every error kept, includes found beside their includer."""

from pathlib import Path
from typing import Any, NamedTuple

from gin import config_parser

from ml.config.code import Code, Places
from ml.config.components import Component, Importer
from ml.config.errors import Location, Problem, did_you_mean
from ml.config.grammar import Unreadable, statements
from ml.config.limits import unusable
from ml.config.lost import Lost
from ml.config.search_path import SearchPath
from ml.config.statements import CODE_KEY, Layer
from ml.config.syntax import Assignment, Include

CODE_STATEMENT = tuple(CODE_KEY.split("."))
LAYER_STATEMENT = ("juniper", "layer")  # `juniper.layer = 'default'`: who set what follows in this file
_WITHOUT_PLACE = ("singleton", "gin.singleton")  # its scope is the name of what is shared


class RawStatement(NamedTuple):
    """A binding or, where `parameter` is empty, the definition of a macro.

    `entries` are the keys in brackets behind the parameter, `operator` is `=`, `+=` or `-=`.
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
    """Reads files and flags in order, each file once under each scope, and keeps every statement and every problem."""

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
        """Reads a file and what it includes.

        Args:
            name: as the user or the include statement gives it.
            location: of the include statement, or None for a file that the user names.
            including: the files that are being read, outermost first.
            under: the scope before the scope of each binding in it; macros, which have no place, keep their names.
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
        """A file that a user names is meant to count at that place, and it counts where it was first read."""
        how = f"is included already ({included_at})" if included_at else "is named twice"
        message = f"{shown} {how}, and a file is read once, where it comes first: name it before the others, or not"
        self.problems.append(Problem(None, message))

    def read_text(
        self, text: str, source: str, layer: Layer, including: tuple[Path, ...] = (), under: tuple[str, ...] = ()
    ) -> None:
        """Reads statements from text; `source` is what locations call it, `under` the scope before each binding."""
        lines = text.splitlines()
        numbered = including or len([line for line in lines if line.strip()]) > 1
        for number, statement in statements(text):
            location = Location(source, number if numbered else None)
            quoted = lines[number - 1] if number <= len(lines) else ""
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

    def _binding(
        self, statement: Assignment, layer: Layer, location: Location, quoted: str, under: tuple[str, ...]
    ) -> None:
        scope = tuple(part for part in statement.scope.split("/") if part)
        name, parameter = statement.selector, statement.arg_name
        if name in ("macro", "gin.macro") and parameter == "value" and scope:  # `NAME/macro.value = 1`
            scope, name, parameter = scope[:-1], scope[-1], ""
        if problem := unusable(statement.value):
            what = f"{name}.{parameter}" if parameter else f"the macro {'/'.join((*scope, name))}"
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
            message = f"a saved operative config cannot be read under a scope, here under {'/'.join(under)!r}"
            self.problems.append(Problem(location, message, quoted))
            return layer
        message = f"juniper.layer must be one of {', '.join(names)}, not {value!r}{did_you_mean(str(value), names)}"
        self.problems.append(Problem(location, message, quoted))
        return current

    def _import(self, statement: config_parser.ImportStatement, location: Location, including: tuple[Path, ...]):
        name, text = statement.module, statement.format()
        if name.startswith("__gin__"):
            message = "dynamic registration is not supported: import the module, and make its classes configurable"
            self._missing(location, message, text)
            return
        places = self._code.places(including)
        try:
            self._import_module(statement, places)
        except ModuleNotFoundError as error:
            itself = error.name is not None and f"{name}.".startswith(f"{error.name}.")
            message = places.not_found(name) if itself else f"cannot import {name}: {error}"
            self._missing(location, message, text)
        except Exception as error:  # the imported module is the user's code: anything can happen in it
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
            message = f"{CODE_KEY} must hold the SHA-256 of each file, as in {{'my_layers.py': 'ab12...'}}"
            self.problems.append(Problem(location, message, quoted))
        else:
            self._code.expect(value, location, including)

    def check_code(self) -> list[Component]:
        """The sources of everything that was imported; those of a run must be the ones that it was made with."""
        components = self.importer.components()
        if problems := self._code.misfits(components):
            self.lost.everything = True
            self.problems += problems
        return components
