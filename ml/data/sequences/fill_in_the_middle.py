"""Fill-in-the-middle: documents rearranged so that a left-to-right model learns to fill gaps."""

from typing import NamedTuple

import numpy as np

from ml.config import REQUIRED, configurable, require
from ml.data.errors import DataError
from ml.data.randomness import derive_seed, random_integers
from ml.data.sequences.streams import TokenStream
from ml.data.tokenizers import Tokenizer

_RESOLUTION = 2**32  # number of distinct draws that are compared with a rate


class Sentinels(NamedTuple):
    """Tokens before the three parts of a document."""

    prefix: int
    suffix: int
    middle: int


@configurable
class FillInTheMiddle:
    """Moves the middle of a document to its end (Bavarian et al. 2022, arXiv:2207.14255).

    Two positions, drawn uniformly, cut a document into prefix, middle and suffix. Two orders are trained jointly:

        PSM: <prefix> prefix <suffix> suffix <middle> middle
        SPM: <prefix> <suffix> suffix <middle> prefix middle

    The end-of-document token stays last. Whether and where a document is cut depends only on the seed and the
    document's index, so it is the same in every epoch. Cuts are between tokens. The held-out split is not rearranged.

    Args:
        rate: Fraction of the documents that are rearranged, in [0, 1].
        spm_rate: Fraction of the rearranged documents that are in SPM order, in [0, 1].
        prefix: Sentinel `<prefix>`: a token id, which may be above those of the tokenizer, or the text of a special
            token of the tokenizer. Documents must not contain it.
        suffix: Sentinel `<suffix>`, likewise.
        middle: Sentinel `<middle>`, likewise.
    """

    def __init__(
        self,
        rate: float = 0.5,
        spm_rate: float = 0.5,
        prefix: int | str = REQUIRED,
        suffix: int | str = REQUIRED,
        middle: int | str = REQUIRED,
    ):
        require(0.0 <= rate <= 1.0, "rate", f"must be a probability, not {rate}")
        require(0.0 <= spm_rate <= 1.0, "spm_rate", f"must be a probability, not {spm_rate}")
        self.sentinels = {"prefix": prefix, "suffix": suffix, "middle": middle}
        for index, (name, token) in enumerate(self.sentinels.items()):
            is_distinct = token not in list(self.sentinels.values())[:index]
            require(isinstance(token, str) or token >= 0, name, f"must not be negative: {token}")
            require(is_distinct, name, f"must differ from the other sentinels: {token!r}")
        self.rate = rate
        self.spm_rate = spm_rate

    def apply(self, stream: TokenStream, tokenizer: Tokenizer, seed: int) -> TokenStream:
        """Returns the stream with some of its documents rearranged; nothing is read yet.

        Args:
            stream: Stream of documents.
            tokenizer: Tokenizer that resolves sentinels given as text.
            seed: Seed of the run.

        Raises:
            DataError: The tokenizer lacks a special token, or two sentinels are the same token.
        """
        tokens = {name: self._token(name, token, tokenizer) for name, token in self.sentinels.items()}
        if len(set(tokens.values())) < len(tokens):
            raise DataError(f"the sentinels of FillInTheMiddle must be three different tokens, not {tokens}")
        return _RearrangedStream(stream, self, Sentinels(**tokens), derive_seed(seed, "fill in the middle"))

    def _token(self, name: str, token: int | str, tokenizer: Tokenizer) -> int:
        if isinstance(token, int):
            return token
        found = tokenizer.special_token(token)
        if found is None:
            raise DataError(f"the tokenizer has no special token {token!r} (FillInTheMiddle.{name})")
        return found


def vocab_size_with(vocab_size: int | None, fill_in_the_middle: FillInTheMiddle | None) -> int | None:
    """Returns the exclusive upper bound of the token ids, sentinels included.

    Args:
        vocab_size: That of the tokenizer; None if unknown.
        fill_in_the_middle: Options with the sentinels, or None.
    """
    if vocab_size is None or fill_in_the_middle is None:
        return vocab_size
    ids = [token for token in fill_in_the_middle.sentinels.values() if isinstance(token, int)]
    return max([vocab_size, *(token + 1 for token in ids)])


class _RearrangedStream(TokenStream):
    """Stream that reads a document as slices, so that no document has to be read whole."""

    def __init__(self, stream: TokenStream, options: FillInTheMiddle, sentinels: Sentinels, seed: int):
        self._stream = stream
        self._sentinels = sentinels
        self._options = options
        self._seed = seed
        self.num_end_tokens = stream.num_end_tokens
        self._starts = np.concatenate(([0], stream.ends[:-1])).astype(np.int64)
        self._lengths = np.maximum(stream.ends - self._starts - stream.num_end_tokens, 0)  # of the text
        is_drawn = self._drawn("turn", np.arange(len(self._lengths))) < options.rate * _RESOLUTION
        self._is_rearranged = is_drawn & (self._lengths > 0)
        self.ends = stream.ends + np.cumsum(len(sentinels) * self._is_rearranged)
        self.num_tokens = int(self.ends[-1]) if len(self.ends) else 0

    def read(self, start: int, stop: int) -> np.ndarray:
        first, last = np.searchsorted(self.ends, (start, max(stop - 1, start)), side="right").tolist()
        parts = [np.zeros(0, dtype=np.uint8)]
        for document in range(first, min(last, len(self.ends) - 1) + 1):
            position = int(self.ends[document - 1]) if document else 0
            for piece in self._pieces(document):
                size = 1 if isinstance(piece, int) else piece[1] - piece[0]
                low, high = max(start - position, 0), min(stop - position, size)
                position += size
                if low >= high:
                    continue
                if isinstance(piece, int):
                    parts.append(np.array([piece], dtype=np.uint32))
                else:
                    parts.append(self._stream.read(piece[0] + low, piece[0] + high))
        return np.concatenate(parts)

    def _pieces(self, document: int) -> list[int | tuple[int, int]]:
        """Returns the parts of a document: sentinels, and (start, stop) slices of the underlying stream."""
        start, end = int(self._starts[document]), int(self._stream.ends[document])
        if not self._is_rearranged[document]:
            return [(start, end)]
        prefix_id, suffix_id, middle_id = self._sentinels
        first, second = self._cuts(document)
        stop = start + int(self._lengths[document])
        prefix, middle, suffix = (start, start + first), (start + first, start + second), (start + second, stop)
        is_spm = self._drawn("order", np.array([document]))[0] < self._options.spm_rate * _RESOLUTION
        if is_spm:
            return [prefix_id, suffix_id, suffix, middle_id, (start, start + second), (stop, end)]
        return [prefix_id, prefix, suffix_id, suffix, middle_id, middle, (stop, end)]

    def _cuts(self, document: int) -> list[int]:
        cuts = random_integers(
            derive_seed(self._seed, "cuts", document), np.arange(2), int(self._lengths[document]) + 1
        )
        return sorted(cuts.tolist())

    def _drawn(self, purpose: str, documents: np.ndarray) -> np.ndarray:
        return random_integers(derive_seed(self._seed, purpose), documents, _RESOLUTION)
