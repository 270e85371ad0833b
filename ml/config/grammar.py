"""Text to statements: gin's grammar, with recovery after an error."""

import io
import re
import tokenize
from collections.abc import Iterator
from typing import Any, NamedTuple

from ml.config import gin_internals
from ml.config.errors import shortened
from ml.config.limits import MAX_DEPTH
from ml.config.syntax import Assignment, Parser

_STATEMENT_START = re.compile(r"[A-Za-z_%@]")
_BLOCK = re.compile(r"[\w/.]+:\s*(#.*)?$")
_INDENTED = re.compile(r"[ \t]+(?=[A-Za-z_])")
_BLOCK_ENTRY = re.compile(r"[ \t]+[A-Za-z_]\w*\s*(\[.*?\]\s*)*[+-]?=")


class RawReference(NamedTuple):
    """`@scope/Name` before the name is looked up."""

    scopes: tuple[str, ...]
    name: str
    evaluate: bool


class RawMacro(NamedTuple):
    """`%NAME`, a macro or a constant, before the name is looked up."""

    name: str


class _Delegate(gin_internals.ParserDelegate):
    def configurable_reference(self, scoped_configurable_name, evaluate):
        *scopes, name = scoped_configurable_name.split("/")
        return RawReference(tuple(scopes), name, evaluate)

    def macro(self, macro_name):
        return RawMacro(macro_name)


class Unreadable(NamedTuple):
    """A statement that cannot be read.

    Attributes:
        message: The reason.
        lost: The text of the statement; empty if no statement is lost.
    """

    message: str
    lost: str = ""


def statements(text: str) -> Iterator[tuple[int, Any]]:
    """Yields the statements of a text with their line numbers; an invalid one as `Unreadable`.

    After an error, reading resumes at the next line that can begin a statement, or at the next line of a block.
    """
    lines = text.splitlines(keepends=True)
    offset = 0
    while True:
        begun = offset + 1
        try:
            parser = Parser(io.StringIO("".join(lines[offset:])), _Delegate())
            while True:
                begun = offset + _first_statement_line(parser)
                statement = parser.parse_statement()
                if statement is None:
                    return
                begun = offset + statement.location.line_num
                yield from _repeated_keys(parser, offset)
                yield begun, statement
        except (SyntaxError, tokenize.TokenError, ValueError, RecursionError) as error:
            failed_at, message = _explain(error, begun, offset, lines)
        offset = _next_statement(lines, begun)
        if _BLOCK.match(lines[begun - 1]) and (entries := _block_entries(lines, begun, offset)):
            found = [pair for first, last in entries for pair in _block_entry(lines, begun, first, last)]
            yield from found
            if not any(isinstance(statement, Unreadable) for _, statement in found):  # only the whole block is invalid
                yield failed_at, Unreadable(message)
        else:
            yield failed_at, Unreadable(message, "".join(lines[begun - 1 : offset]))


def _block_entries(lines: list[str], header: int, end: int) -> list[tuple[int, int]]:
    """The first and last line number of each binding in a block, from 1."""
    indents = [found[0] for line in lines[header:end] if (found := _INDENTED.match(line))]
    starts = [
        number
        for number, line in enumerate(lines[header:end], header + 1)
        if _BLOCK_ENTRY.match(line) or ((found := _INDENTED.match(line)) and found[0] == indents[0])
    ]
    return [(first, after - 1) for first, after in zip(starts, [*starts[1:], end + 1], strict=True)]


def _block_entry(lines: list[str], header: int, first: int, last: int) -> Iterator[tuple[int, Any]]:
    """One binding of a block, read as if it were the only one."""
    body = "".join(lines[first - 1 : last])
    text = lines[header - 1] + "\n" * (first - header - 1) + body
    offset = header - 1
    try:
        parser = Parser(io.StringIO(text), _Delegate())
        for statement in parser:
            if isinstance(statement, Assignment):
                yield from _repeated_keys(parser, offset)
                yield offset + statement.location.line_num, statement
    except (SyntaxError, tokenize.TokenError, ValueError, RecursionError) as error:
        failed_at, message = _explain(error, first, offset, lines)
        selector = lines[header - 1].partition(":")[0].strip()
        yield failed_at, Unreadable(message, f"{selector}.{body.strip()}\n")


def _repeated_keys(parser: Parser, offset: int) -> Iterator[tuple[int, Unreadable]]:
    for line, key in parser.repeated:
        yield offset + line, Unreadable(f"the dict has the key {_spell(key)} twice")
    parser.repeated.clear()


def _spell(key: Any) -> str:
    if isinstance(key, RawMacro):
        return f"%{key.name}"
    return f"@{'/'.join((*key.scopes, key.name))}" if isinstance(key, RawReference) else repr(key)


def _first_statement_line(parser: Any) -> int:
    parser._skip_whitespace_and_comments()
    return parser.current_token.start[0]


def _explain(error: Exception, begun: int, offset: int, lines: list[str]) -> tuple[int, str]:
    """The line and the message for an error of gin's parser or Python's tokenizer."""
    if isinstance(error, RecursionError):
        return begun, f"cannot be read: its brackets are nested more than {MAX_DEPTH} levels deep"
    if not isinstance(error, SyntaxError):  # an unclosed bracket or string: the tokenizer reports no place
        return begun, "cannot be read: " + str(error.args[0] if error.args else error)
    line, message = _explain_syntax(error, begun, offset, lines)
    if line > begun and _STATEMENT_START.match(lines[line - 1]):
        return begun, "cannot be read: a bracket or string is not closed before the next statement"
    return line, message


def _explain_syntax(error: SyntaxError, begun: int, offset: int, lines: list[str]) -> tuple[int, str]:
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
    if word.lstrip("-").isdigit():
        return f"a number of {len(word):,} digits is too large for any parameter"
    word = shortened(word)
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
    """The number of lines to skip so that reading resumes after line number `after`."""
    for index in range(after, len(lines)):
        if _STATEMENT_START.match(lines[index]):
            return index
    return len(lines)
