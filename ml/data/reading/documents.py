"""Text documents."""

from typing import NamedTuple


class Document(NamedTuple):
    """Named text.

    Attributes:
        name: Identifier that is equal on every machine, such as a relative path.
        text: The text.
        is_row: True for a row of a file with many documents, False for a file.
    """

    name: str
    text: str
    is_row: bool = False
