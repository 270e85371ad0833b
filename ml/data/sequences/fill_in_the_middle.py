"""Documents turned round so that a model that reads from left to right learns to fill a gap."""

from typing import NamedTuple

import numpy as np

from ml.config import REQUIRED, configurable, require
from ml.data.errors import DataError
from ml.data.randomness import derive_seed, random_integers
from ml.data.sequences.streams import TokenStream
from ml.data.tokenizers import Tokenizer

_RESOLUTION = 2**32  # of the draws that are compared with a rate


class Sentinels(NamedTuple):
    """The tokens that stand before the three parts of a document."""

    prefix: int
    suffix: int
    middle: int


@configurable
class FillInTheMiddle:
    """Puts the middle of a document behind the rest of it (Bavarian et al. 2022, arXiv:2207.14255).

    A document is cut at two places, drawn alike among all, in prefix, middle and suffix. Two orders are learned
    together:

        PSM: <prefix> prefix <suffix> suffix <middle> middle
        SPM: <prefix> <suffix> suffix <middle> prefix middle

    What says that a document ends stays at its end. Where a document is cut, and whether it is, depends on the seed and
    on its number alone, so it is the same in every epoch. The cuts are between tokens. Held-out text stays as it is.

    Args:
        rate: The part of the documents that are turned round.
        spm_rate: The part of those that are in the order SPM.
        prefix: The token `<prefix>`: a number, which may lie behind those of the tokenizer, or how a special token of
            the tokenizer is written. The text must not use it.
        suffix: Likewise `<suffix>`.
        middle: Likewise `<middle>`.
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
        for place, (name, token) in enumerate(self.sentinels.items()):
            is_own = token not in list(self.sentinels.values())[:place]
            require(isinstance(token, str) or token >= 0, name, f"must not be negative: {token}")
            require(is_own, name, f"must be a token of its own, not {token!r}")
        self.rate = rate
        self.spm_rate = spm_rate

    def of(self, stream: TokenStream, tokenizer: Tokenizer, seed: int) -> TokenStream:
        """The stream with some of its documents turned round; nothing is read yet.

        Raises:
            DataError: The tokenizer has no such special token, or two of the three are one.
        """
        tokens = {name: self._token(name, token, tokenizer) for name, token in self.sentinels.items()}
        if len(set(tokens.values())) < len(tokens):
            raise DataError(f"the sentinels of FillInTheMiddle must be three different tokens, not {tokens}")
        return _TurnedStream(stream, self, Sentinels(**tokens), derive_seed(seed, "fill in the middle"))

    def _token(self, name: str, token: int | str, tokenizer: Tokenizer) -> int:
        if isinstance(token, int):
            return token
        found = tokenizer.special_token(token)
        if found is None:
            raise DataError(f"the tokenizer has no special token {token!r} (FillInTheMiddle.{name})")
        return found


def vocab_size_with(vocab_size: int | None, fill_in_the_middle: FillInTheMiddle | None) -> int | None:
    """All tokens of a tokenizer with so many, and the sentinels if there are some, are below this number."""
    if vocab_size is None or fill_in_the_middle is None:
        return vocab_size
    numbers = [token for token in fill_in_the_middle.sentinels.values() if isinstance(token, int)]
    return max([vocab_size, *(token + 1 for token in numbers)])


class _TurnedStream(TokenStream):
    """Reads a document as the slices that it is made of, so that no document has to be read whole."""

    def __init__(self, stream: TokenStream, options: FillInTheMiddle, sentinels: Sentinels, seed: int):
        self._stream = stream
        self._sentinels = sentinels
        self._options = options
        self._seed = seed
        self.num_end_tokens = stream.num_end_tokens
        self._starts = np.concatenate(([0], stream.ends[:-1])).astype(np.int64)
        self._lengths = np.maximum(stream.ends - self._starts - stream.num_end_tokens, 0)  # without what ends them
        is_drawn = self._drawn("turn", np.arange(len(self._lengths))) < options.rate * _RESOLUTION
        self._is_turned = is_drawn & (self._lengths > 0)
        self.ends = stream.ends + np.cumsum(len(sentinels) * self._is_turned)
        self.num_tokens = int(self.ends[-1]) if len(self.ends) else 0

    def read(self, start: int, stop: int) -> np.ndarray:
        first, last = np.searchsorted(self.ends, (start, max(stop - 1, start)), side="right").tolist()
        parts = [np.zeros(0, dtype=np.uint8)]
        for document in range(first, min(last, len(self.ends) - 1) + 1):
            place = int(self.ends[document - 1]) if document else 0
            for piece in self._pieces(document):
                size = 1 if isinstance(piece, int) else piece[1] - piece[0]
                low, high = max(start - place, 0), min(stop - place, size)
                place += size
                if low < high and isinstance(piece, int):
                    parts.append(np.array([piece], dtype=np.uint32))
                elif low < high:
                    parts.append(self._stream.read(piece[0] + low, piece[0] + high))
        return np.concatenate(parts)

    def _pieces(self, document: int) -> list[int | tuple[int, int]]:
        """What a document is made of: sentinels, and stretches of the stream below, from and to before."""
        start, end = int(self._starts[document]), int(self._stream.ends[document])
        if not self._is_turned[document]:
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
        places = random_integers(
            derive_seed(self._seed, "cuts", document), np.arange(2), int(self._lengths[document]) + 1
        )
        return sorted(places.tolist())

    def _drawn(self, what: str, documents: np.ndarray) -> np.ndarray:
        return random_integers(derive_seed(self._seed, what), documents, _RESOLUTION)
