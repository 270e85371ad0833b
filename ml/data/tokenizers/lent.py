"""Tokenizer of data: its own, or that of the run."""

from collections.abc import Callable

from ml.data.errors import DataError
from ml.data.tokenizers.base import Tokenizer
from ml.data.tokenizers.bytes import ByteTokenizer

Lender = Callable[[], Tokenizer | None]


class OwnOrLent:
    """Tokenizer of data, which takes that of the run unless it has its own; bytes if there is neither.

    Attributes:
        is_own: True if the data has its own tokenizer.
    """

    def __init__(self, own: Tokenizer | None):
        self.is_own = own is not None
        self._otherwise = ByteTokenizer() if own is None else own
        self._lender: Lender | None = None

    @property
    def vocab_size(self) -> int | None:
        """Exclusive upper bound of the token ids; None if the tokenizer of the run cannot be read."""
        if self.is_own:
            return self.get().vocab_size
        try:
            return self.get().vocab_size
        except DataError:  # reading the data raises it again
            return None

    def lend(self, lender: Lender) -> None:
        """Sets the tokenizer of the run; it has no effect on an own tokenizer.

        Args:
            lender: Returns the tokenizer, at every use the same; None for bytes.
        """
        if not self.is_own:
            self._lender = lender

    def use(self, tokenizer: Tokenizer) -> None:
        """Uses another tokenizer instead of an own one."""
        if self.is_own:
            self._otherwise = tokenizer

    def get(self) -> Tokenizer:
        """Returns the tokenizer.

        Raises:
            DataError: That of the run cannot be read.
        """
        lent = self._lender() if self._lender is not None else None
        return self._otherwise if lent is None else lent
