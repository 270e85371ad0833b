"""End of generated text."""

from typing import NamedTuple, Self

from ml.data.sequences.document_separator import Separator


class Ending(NamedTuple):
    """Tokens and texts that end a generated text.

    A text ends at the token itself: text that spells a special token does not end it.

    Attributes:
        tokens: Tokens that end it.
        stops: Texts that end it, where no token does.
        trimmed: Text before an end token that is not part of the generated text.
    """

    tokens: frozenset[int] = frozenset()
    stops: tuple[str, ...] = ()
    trimmed: str = ""

    @classmethod
    def of(cls, separator: Separator) -> Self:
        """Returns the end of a document: the separator."""
        if separator.token is not None:
            return cls(frozenset({separator.token}))
        return cls(stops=(separator.text,) if separator.text else ())


NO_ENDING = Ending()
