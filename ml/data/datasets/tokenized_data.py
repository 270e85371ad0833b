"""Data that tokenizes its corpus, with its own tokenizer or that of the run."""

from ml.data.datasets.dataset import Data
from ml.data.tokenizers import Tokenizer
from ml.data.tokenizers.lent import Lender, OwnOrLent


class TokenizedData(Data):
    """Base of data that tokenizes its corpus; subclasses set `_tokenizer`."""

    _tokenizer: OwnOrLent

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the text.

        Raises:
            DataError: That of the run cannot be read.
        """
        return self._tokenizer.get()

    @property
    def has_own_tokenizer(self) -> bool:
        """False if the data takes the tokenizer of the run."""
        return self._tokenizer.is_own

    def lend_tokenizer(self, lender: Lender) -> None:
        self._tokenizer.lend(lender)

    def use_tokenizer(self, tokenizer: Tokenizer) -> None:
        self._tokenizer.use(tokenizer)
