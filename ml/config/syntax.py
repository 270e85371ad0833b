"""Juniper's additions to gin's grammar. Plain gin text has the same meaning as in gin.

- `Name.parameter['key'] = value`, `Name.parameter += [value]` and `-=`, alone and in blocks;
- arithmetic in values: `%width * 4`, `(%a + 8) // 2`, `-%a`;
- `include 'file.gin' under 'scope'`.
"""

import itertools
import re
import tokenize
from collections.abc import Iterator
from typing import Any, NamedTuple

from gin import config_parser

from ml.config import gin_internals
from ml.config.values import Expression

_SUMS = ("+", "-")
_PRODUCTS = ("*", "/", "//", "%")
_ASSIGNMENTS = ("=", "+=", "-=")
_MOST_OPERATORS = 200  # in one statement; expressions are trees that are walked recursively
_SCOPE = re.compile(r"[A-Za-z_]\w*(/[A-Za-z_]\w*)*")


class Assignment(NamedTuple):
    """`scope/selector.arg_name[entries] operator value`; the operator is `=`, `+=` or `-=`."""

    scope: str
    selector: str
    arg_name: str
    entries: tuple[Any, ...]
    operator: str
    value: Any
    location: config_parser.Location


class Include(NamedTuple):
    """`include 'filename' under 'scope'`."""

    filename: str
    scope: tuple[str, ...]
    location: config_parser.Location


class Parser(gin_internals.ConfigParser):
    """Gin's parser with the additions above."""

    _operators = 0  # in the statement being read

    def parse_statement(self) -> Any:
        """Returns the next statement: an `Assignment`, an `Include`, or gin's import or block; None at the end.

        Raises:
            SyntaxError: The text is none of these.
        """
        if self._statements_queue:
            return self._statements_queue.popleft()
        self._skip_whitespace_and_comments()
        if self._current_token.type == tokenize.ENDMARKER:
            return None
        location = self._current_location(ignore_char_num=True)
        key = self._parse_selector()
        if self._current_token.string == "[" or self._current_token.string in _ASSIGNMENTS:
            scope, selector, parameter = config_parser.parse_binding_key(key)
            statement: Any = self._assignment(scope, selector, parameter, location)
        elif self._current_token.string == ":":
            statement, bindings = self._parse_binding_block(key, block_location=location)
            self._statements_queue.extend(bindings)
        elif key in ("import", "from"):
            statement = self._parse_import(key, location)
        elif key == "include":
            statement = self._include(location)
        else:
            self._raise_syntax_error("Couldn't parse statement, expected ':' or '='.")
        if self._current_token.type not in (tokenize.NEWLINE, tokenize.DEDENT, tokenize.ENDMARKER):
            self._raise_syntax_error("Expected newline.")
        if self._current_token.type != tokenize.ENDMARKER:
            self._advance_one_token()
        return statement

    def _assignment(self, scope: str, selector: str, parameter: str, location: Any) -> Assignment:
        """Parses the text after a key: entries in brackets, an operator, a value."""
        self._operators = 0
        entries = []
        while self._current_token.string == "[":
            self._advance()
            entries.append(self.parse_value())
            self._expect("]", "Expected ']'.")
        operator = self._current_token.string
        if operator not in _ASSIGNMENTS:
            self._raise_syntax_error("Expected '='.")
        self._advance_one_token()
        value = self.parse_value()
        return Assignment(scope, selector, parameter, tuple(entries), operator, value, location)

    def _include(self, location: Any) -> Include:
        filename = self._string("Expected file path as string.")
        scope = ""
        if self._current_token.string == "under":
            self._advance_one_token()
            place = self._current_location()
            scope = self._string("Expected a scope as string after 'under'.")
            if not _SCOPE.fullmatch(scope):
                self._raise_syntax_error(f"{scope!r} is not a scope, such as 'encoder' or 'decoder/block_3'.", place)
        return Include(filename, tuple(scope.split("/")) if scope else (), location)

    def _string(self, message: str) -> str:
        place = self._current_location()
        found, value = self._maybe_parse_basic_type()
        if not found or not isinstance(value, str):
            self._raise_syntax_error(message, place)
        return value

    def _parse_binding_block(self, scoped_selector: str, block_location: Any) -> tuple[Any, list[Assignment]]:
        self._expect(":", "Expected ':'.")
        self._skip([tokenize.COMMENT])
        self._expect(tokenize.NEWLINE, "Expected newline.")
        self._skip([tokenize.COMMENT, tokenize.NL])
        self._expect(tokenize.INDENT, "Expected indentation.")
        self._skip([tokenize.COMMENT, tokenize.NL])
        scope, selector = config_parser.parse_scoped_selector(scoped_selector)
        bindings = []
        with self._block_scope():
            while self._current_token.type != tokenize.DEDENT:
                location = self._current_location()
                parameter = self._parse_identifier()
                bindings.append(self._assignment(scope, selector, parameter, location))
                self._expect(tokenize.NEWLINE, "Expected newline.")
                self._skip_whitespace_and_comments()
        return config_parser.BlockDeclaration(scope, selector, block_location), bindings

    def parse_value(self) -> Any:
        """Returns a literal, reference or macro as in gin, or an `Expression` of numbers."""
        value = self._product()
        while self._current_token.string in _SUMS:
            value = Expression(self._operator(), (value, self._product()))
        return value

    def _product(self) -> Any:
        value = self._signed()
        while self._current_token.string in _PRODUCTS:
            value = Expression(self._operator(), (value, self._signed()))
        return value

    def _signed(self) -> Any:
        sign = self._current_token.string
        if sign not in _SUMS or (sign == "-" and self._peek().type in (tokenize.NAME, tokenize.STRING)):
            return self._power()  # gin reports the error in `-inf`
        self._operator()
        value = self._signed()
        if type(value) in (int, float, complex):
            return -value if sign == "-" else value
        return Expression(sign, (value,))

    def _power(self) -> Any:
        value = super().parse_value()
        if self._current_token.string == "**":  # precedence below a sign on its right, above one on its left
            value = Expression(self._operator(), (value, self._signed()))
        return value

    def _operator(self) -> str:
        operator = self._current_token.string
        self._operators += 1
        if self._operators > _MOST_OPERATORS:
            self._raise_syntax_error(f"More than {_MOST_OPERATORS} operators in one statement.")
        self._advance()
        return operator

    def _maybe_parse_macro(self) -> tuple[bool, Any]:
        """Parses `%scope/name`; a slash without a name after it is a division."""
        if self._current_token.string != "%":
            return False, None
        self._advance_one_token()
        if self._current_token.type != tokenize.NAME:
            self._raise_syntax_error("Unexpected token.")
        name, end = self._current_token.string, self._current_token.end
        self._advance_one_token()
        while self._current_token.string in ("/", ".") and self._current_token.start == end:
            following = self._peek()
            if following.type != tokenize.NAME or following.start != self._current_token.end:
                break
            name, end = f"{name}{self._current_token.string}{following.string}", following.end
            self._advance_one_token()
            self._advance_one_token()
        self._skip_whitespace_and_comments()
        return True, self._delegate.macro(name)

    def _peek(self) -> tokenize.TokenInfo:
        token = next(self._token_generator)
        self._token_generator: Iterator[tokenize.TokenInfo] = itertools.chain([token], self._token_generator)
        return token
