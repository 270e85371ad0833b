"""From files and flags to statements: gin's own grammar, every error kept, includes found beside their includer."""

import difflib
import importlib
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gin import config_parser

from ml.config import gin_internals
from ml.config.errors import Location, Problem, did_you_mean
from ml.config.statements import Layer

LAYER_STATEMENT = ("juniper", "layer")  # `juniper.layer = 'default'`: who set what follows in this file
_STATEMENT_START = re.compile(r"[A-Za-z_%@]")


class RawReference(NamedTuple):
    """`@scope/Name` before the name is looked up."""

    scopes: tuple[str, ...]
    name: str
    evaluate: bool


class RawMacro(NamedTuple):
    """`%NAME` before it is known whether a macro or a constant is meant."""

    name: str


class RawStatement(NamedTuple):
    """A binding or, where `parameter` is empty, the definition of a macro."""

    scope: tuple[str, ...]
    name: str
    parameter: str
    value: Any
    layer: Layer
    location: Location
    text: str


class RawImport(NamedTuple):
    """An import that succeeded."""

    text: str
    module: str
    location: Location


@dataclass
class SearchPath:
    """Where configuration files are looked for, in order, after the place of the includer."""

    folders: list[Path] = field(default_factory=list)
    shipped: Path | None = None

    def find(self, name: str, includer: Path | None = None) -> Path | None:
        """The first file of that name: as given, beside its includer, in the folders, among the shipped ones."""
        beside = [includer.parent] if includer else []
        shipped = [self.shipped] if self.shipped else []
        for folder in (*beside, Path(), *self.folders, *shipped):
            if (folder / name).is_file():
                return folder / name
        return None

    def suggest(self, name: str, includer: Path | None = None) -> str:
        """`; did you mean ...?` among the .gin files of the same places."""
        beside = [includer.parent] if includer else []
        shipped = [self.shipped] if self.shipped else []
        known = [
            found.relative_to(folder).as_posix()
            for folder in (*beside, Path(), *self.folders, *shipped)
            if folder.is_dir()
            for pattern in ("*.gin", "*/*.gin")
            for found in sorted(folder.glob(pattern))
        ]
        by_stem = difflib.get_close_matches(Path(name).name, [Path(k).name for k in known], n=1)
        nearest = [k for k in known if by_stem and Path(k).name == by_stem[0]]
        return f"; did you mean {nearest[0]!r}?" if nearest else did_you_mean(name, known)

    def display(self, path: Path) -> str:
        """A file's name for messages and provenance: the same on every machine where that is possible."""
        resolved = path.resolve()
        for root, prefix in ((self.shipped, "configs"), (Path(), "")):
            if root and resolved.is_relative_to(root.resolve()):
                return (Path(prefix) / resolved.relative_to(root.resolve())).as_posix()
        return path.as_posix()


class _Delegate(gin_internals.ParserDelegate):
    def configurable_reference(self, scoped_configurable_name, evaluate):
        *scopes, name = scoped_configurable_name.split("/")
        return RawReference(tuple(scopes), name, evaluate)

    def macro(self, macro_name):
        return RawMacro(macro_name)


class Reader:
    """Reads files and flags in order, and keeps every statement and every problem."""

    def __init__(self, search_path: SearchPath):
        self.search_path = search_path
        self.statements: list[RawStatement | RawImport] = []
        self.problems: list[Problem] = []
        self.files: list[str] = []

    def read_file(self, name: str, location: Location | None = None, including: tuple[Path, ...] = ()) -> None:
        """Reads a file and what it includes.

        Args:
            name: as the user or the include statement gives it.
            location: of the include statement, or None for a file that the user names.
            including: the files that are being read, outermost first.
        """
        path = self.search_path.find(name, including[-1] if including else None)
        if path is None:
            hint = self.search_path.suggest(name, including[-1] if including else None)
            self.problems.append(Problem(location, f"there is no configuration file {name!r}{hint}"))
            return
        if path.resolve() in [other.resolve() for other in including]:
            chain = " includes ".join(self.search_path.display(p) for p in (*including, path))
            self.problems.append(Problem(location, f"include cycle: {chain}"))
            return
        shown = self.search_path.display(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            self.problems.append(Problem(location, f"cannot read {shown}: {error}"))
            return
        self.files.append(shown)
        self.read_text(text, shown, Layer.FILE, including=(*including, path))

    def read_text(self, text: str, source: str, layer: Layer, including: tuple[Path, ...] = ()) -> None:
        """Reads statements from text; `source` is what locations call it."""
        lines = text.splitlines()
        numbered = including or len([line for line in lines if line.strip()]) > 1
        for number, statement in _statements(text):
            location = Location(source, number if numbered else None)
            quoted = lines[number - 1] if number <= len(lines) else ""
            if isinstance(statement, str):
                self.problems.append(Problem(location, statement, quoted))
            elif isinstance(statement, config_parser.IncludeStatement):
                self.read_file(statement.filename, location, including)
            elif isinstance(statement, config_parser.ImportStatement):
                self._import(statement, location)
            elif isinstance(statement, config_parser.BindingStatement):
                if (statement.selector, statement.arg_name) == LAYER_STATEMENT:
                    layer = self._layer(statement.value, layer, location, quoted)
                else:
                    self._binding(statement, layer, location, quoted)

    def _binding(self, statement, layer: Layer, location: Location, quoted: str) -> None:
        scope = tuple(part for part in statement.scope.split("/") if part)
        name, parameter = statement.selector, statement.arg_name
        if name in ("macro", "gin.macro") and parameter == "value" and scope:  # `NAME/macro.value = 1`
            scope, name, parameter = scope[:-1], scope[-1], ""
        self.statements.append(RawStatement(scope, name, parameter, statement.value, layer, location, quoted))

    def _layer(self, value: Any, current: Layer, location: Location, quoted: str) -> Layer:
        names = [layer.name.lower() for layer in Layer]
        if value in names:
            return Layer(names.index(value))
        message = f"juniper.layer must be one of {', '.join(names)}, not {value!r}{did_you_mean(str(value), names)}"
        self.problems.append(Problem(location, message, quoted))
        return current

    def _import(self, statement: config_parser.ImportStatement, location: Location) -> None:
        if statement.module.startswith("__gin__"):
            message = "dynamic registration is not supported: import the module, and make its classes configurable"
            self.problems.append(Problem(location, message, statement.format()))
            return
        try:
            self._import_module(statement)
        except Exception as error:  # the imported module is the user's code: anything can happen in it
            message = f"cannot import {statement.module}: {type(error).__name__}: {error}"
            self.problems.append(Problem(location, message, statement.format()))
            return
        self.statements.append(RawImport(statement.format(), statement.module, location))

    @staticmethod
    def _import_module(statement: config_parser.ImportStatement) -> None:
        try:
            importlib.import_module(statement.module)
        except ModuleNotFoundError:
            module, _, attribute = statement.module.rpartition(".")
            if not statement.is_from or not hasattr(importlib.import_module(module), attribute):
                raise


def _statements(text: str) -> Iterator[tuple[int, Any]]:
    """The statements of a text with their line numbers; a statement that cannot be read comes as a message.

    After an error reading goes on at the next line that can begin a statement.
    """
    lines = text.splitlines(keepends=True)
    offset = 0
    while True:
        failed_at, message = None, ""
        parser = None
        begun = offset + 1
        try:
            parser = gin_internals.ConfigParser(io.StringIO("".join(lines[offset:])), _Delegate())
            while True:
                begun = offset + _first_statement_line(parser)
                statement = parser.parse_statement()
                if statement is None:
                    return
                begun = offset + statement.location.line_num
                for line, key in parser.repeated:
                    yield offset + line, f"the dict has the key {_spell(key)} twice"
                parser.repeated.clear()
                yield begun, statement
        except SyntaxError as error:
            failed_at, message = _explain(error, begun, offset, lines)
            if failed_at > begun and _STATEMENT_START.match(lines[failed_at - 1]):
                failed_at, message = begun, "cannot be read: what it opens is not closed before the next statement"
        except (tokenize.TokenError, ValueError) as error:  # an open bracket or string: gin loses the place
            failed_at, message = begun, "cannot be read: " + str(error.args[0] if error.args else error)
        yield failed_at, message
        offset = _next_statement(lines, begun)


def _first_statement_line(parser: Any) -> int:
    parser._skip_whitespace_and_comments()
    return parser.current_token.start[0]


def _spell(key: Any) -> str:
    if isinstance(key, RawMacro):
        return f"%{key.name}"
    return f"@{'/'.join((*key.scopes, key.name))}" if isinstance(key, RawReference) else repr(key)


def _explain(error: SyntaxError, begun: int, offset: int, lines: list[str]) -> tuple[int, str]:
    """The line and the words for a syntax error of gin's parser."""
    message = str(error.msg)
    location = error.args[1] if len(error.args) > 1 else None
    line_number = getattr(location, "line_num", None) or (location[1] if isinstance(location, tuple) else None)
    line = offset + line_number if line_number else begun
    line = min(line, len(lines))
    word = re.search(r"Failed to parse token '(.*)'", message)
    if word:
        return line, _bare_word(word[1])
    return line, f"cannot be read: {message.strip().splitlines()[0]}"


def _bare_word(word: str) -> str:
    literals = {"true": "True", "false": "False", "none": "None", "null": "None"}
    if word.lower() in literals:
        return f"{word} is not a value; did you mean {literals[word.lower()]!r}?"
    if word.lstrip("-").lower() in ("inf", "nan"):
        name = word.lower().replace("-", "minus_")
        return f"{word} is not a gin literal; write %math.{name}"
    return (
        f"{word} is not a value: write '{word}' for a string, @{word} for a reference, %{word} for a macro or constant"
    )


def _next_statement(lines: list[str], after: int) -> int:
    """How many lines to leave out so that reading goes on after line number `after`."""
    for index in range(after, len(lines)):
        if _STATEMENT_START.match(lines[index]):
            return index
    return len(lines)
