"""Decoding of UTF-8, with the position of what is invalid."""

import re
from typing import NamedTuple

SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, which JSON can hold and UTF-8 cannot."""


class Decoded(NamedTuple):
    """A text, with U+FFFD in place of invalid bytes.

    Attributes:
        text: The text.
        problem: The first invalid byte and its place; None where all are valid.
        num_replaced: The number of invalid places.
    """

    text: str
    problem: str | None = None
    num_replaced: int = 0


def decode(content: bytes, place: str, offset: int = 0) -> Decoded:
    """Decodes UTF-8.

    Args:
        content: The bytes.
        place: The file, or file and line, for the message.
        offset: Position of the first byte in the file.
    """
    try:
        return Decoded(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        problem = f"{place}: byte {offset + error.start} ({content[error.start]:#04x}) is not UTF-8"
        text = content.decode("utf-8", errors="replace")
        return Decoded(text, problem, text.count("\ufffd") - content.count("\ufffd".encode()))
