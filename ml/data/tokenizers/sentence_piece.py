"""SentencePiece tokenizers."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ml.config import REQUIRED, configurable
from ml.data.errors import DataError
from ml.data.tokenizers.base import SavedArguments, Tokenizer
from ml.data.tokenizers.token_bytes import TokenBytes
from ml.optional import optional_import

if TYPE_CHECKING:
    import sentencepiece

_FILE = "sentence_piece.model"
_SPACE = "▁"


@configurable
class SentencePieceTokenizer(Tokenizer):
    """SentencePiece model; its end-of-sentence symbol, if any, ends a document, its begin-of-sentence symbol begins it.

    Most models normalize text and prepend a space: decoding returns the normalized text, whose bytes `num_bytes`
    counts. Unknown characters of a model without byte fallback count as zero bytes.

    Args:
        path: The .model file.
    """

    def __init__(self, path: str = REQUIRED):
        self.path = path

    @functools.cached_property
    def vocab_size(self) -> int:
        """Exclusive upper bound of the token ids."""
        return self._processor.vocab_size()

    @functools.cached_property
    def end_of_document(self) -> int | None:
        """End-of-sentence symbol; None if the model has none."""
        token = self._processor.eos_id()
        return token if token >= 0 else None

    @functools.cached_property
    def begin_of_document(self) -> int | None:
        """Begin-of-sentence symbol; None if the model has none."""
        token = self._processor.bos_id()
        return token if token >= 0 else None

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._processor.encode(text, out_type=int), np.min_scalar_type(self.vocab_size - 1))

    def decode(self, tokens: np.ndarray) -> str:
        return self._processor.decode(np.asarray(tokens).tolist())

    def num_bytes(self, tokens: np.ndarray) -> int:
        return self._bytes.num_bytes(tokens)

    def num_unknown(self, text: str, tokens: np.ndarray) -> int:
        """Returns the number of tokens for unknown characters."""
        return int(np.count_nonzero(tokens == self._processor.unk_id()))

    def save(self, folder: Path) -> SavedArguments:
        (folder / _FILE).write_bytes(self._content)
        return SavedArguments({}, {"path": _FILE})

    @functools.cached_property
    def _content(self) -> bytes:
        try:
            return Path(self.path).read_bytes()
        except OSError as error:
            raise DataError(
                f"cannot read {self.path} (SentencePieceTokenizer.path, from {Path.cwd()}): {error.strerror}"
            ) from None

    @functools.cached_property
    def _processor(self) -> "sentencepiece.SentencePieceProcessor":
        sentencepiece = optional_import("sentencepiece", "tokenizers", "SentencePieceTokenizer", DataError)
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.load_from_serialized_proto(self._content)
        except RuntimeError as error:
            raise DataError(
                f"{self.path} (SentencePieceTokenizer.path) is not a SentencePiece model: {error}"
            ) from None
        return processor

    @functools.cached_property
    def _bytes(self) -> TokenBytes:
        processor = self._processor
        pieces, special = [], {}
        for token in range(self.vocab_size):
            piece = processor.id_to_piece(token)
            if processor.is_control(token) or processor.is_unknown(token):
                special[token] = piece
            is_byte = processor.is_byte(token)  # written <0x0A>
            pieces.append(bytes([int(piece[3:5], 16)]) if is_byte else piece.replace(_SPACE, " ").encode())
        return TokenBytes(pieces, special)
