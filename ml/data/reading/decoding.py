"""UTF-8 decoding that reports the position of invalid bytes."""

import re
from typing import NamedTuple

SURROGATE = re.compile("[\ud800-\udfff]")
"""Lone surrogate, which JSON can represent and UTF-8 cannot."""


class Decoded(NamedTuple):
    """Decoded text, with U+FFFD in place of invalid bytes.

    Attributes:
        text: The text.
        problem: Location and value of the first invalid byte; None if all are valid.
        num_replaced: Number of replaced byte sequences.
    """

    text: str
    problem: str | None = None
    num_replaced: int = 0


def decode(content: bytes, place: str, offset: int = 0) -> Decoded:
    """Decodes UTF-8, replacing invalid bytes.

    Args:
        content: Encoded bytes.
        place: File, or file and line, named in the problem.
        offset: Position of the first byte in the file.
    """
    try:
        return Decoded(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        problem = f"{place}: byte {offset + error.start} ({content[error.start]:#04x}) is not UTF-8"
        text = content.decode("utf-8", errors="replace")
        return Decoded(text, problem, text.count("\ufffd") - content.count("\ufffd".encode()))
