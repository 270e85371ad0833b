"""Documents of text."""

from typing import NamedTuple


class Document(NamedTuple):
    """A text and its name, which is the same on every machine."""

    name: str
    text: str
