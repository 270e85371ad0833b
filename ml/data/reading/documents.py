"""Text documents."""

from typing import NamedTuple


class Document(NamedTuple):
    """Named text.

    Attributes:
        name: Identifier that is equal on every machine, such as a relative path.
        text: The text.
    """

    name: str
    text: str
