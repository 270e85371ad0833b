"""SentencePiece tokenizers."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ml.config import REQUIRED, configurable
from ml.data.errors import DataError
from ml.data.tokenizers.base import SavedArguments, SpecialToken, Tokenizer, TokenSpans
from ml.data.tokenizers.definition import Definition
from ml.data.tokenizers.sentence_piece_model import changed, spans, symbols
from ml.data.tokenizers.token_bytes import TokenBytes
from ml.optional import optional_import

if TYPE_CHECKING:
    import sentencepiece

_FILE = "sentence_piece.model"
_SPACE = "▁"


@configurable
class SentencePieceTokenizer(Tokenizer):
    """SentencePiece model.

    Most models normalize text and prepend a space: decoding returns the normalized text, whose bytes `num_bytes`
    counts. Unknown characters of a model without byte fallback count as zero bytes.

    Args:
        path: The .model file.
        end_of_document: Special token after each document; "" for none. None is the end-of-sentence symbol, if any.
        begin_of_document: Special token before each document; "" for none. None is the begin-of-sentence symbol, if
            any.
        added_tokens: Special tokens to add after the vocabulary, in this order; those that the model has keep their
            ids.
        symbols_in_text: True encodes a user-defined symbol in a text, such as "<start_of_turn>", as this symbol. False
            encodes it as ordinary text; only runs of white space are symbols in text.
    """

    def __init__(
        self,
        path: str = REQUIRED,
        end_of_document: str | None = None,
        begin_of_document: str | None = None,
        added_tokens: Sequence[str] = (),
        symbols_in_text: bool = False,
    ):
        self.path = path
        self._end_of_document = end_of_document
        self._begin_of_document = begin_of_document
        self._added_tokens = list(added_tokens)
        self._symbols_in_text = symbols_in_text

    @property
    def source(self) -> str:  # type: ignore[override]
        """The file."""
        return self.path

    @property
    def folder(self) -> Path:
        """Folder of the file."""
        return Path(self.path).parent

    @functools.cached_property
    def vocab_size(self) -> int:
        """Exclusive upper bound of the token ids."""
        return self._num_pieces + len(self._added)

    @functools.cached_property
    def end_of_document(self) -> int | None:
        """Token after each document."""
        return self._named("end_of_document", self._end_of_document, self._processor.eos_id())

    @functools.cached_property
    def begin_of_document(self) -> int | None:
        """Token before each document."""
        return self._named("begin_of_document", self._begin_of_document, self._processor.bos_id())

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._whole.encode(text, out_type=int), self._dtype)

    def encode_with_spans(self, text: str, is_start: bool) -> TokenSpans:
        encode = (self._first if is_start else self._continuing).encode
        found = np.array(spans(encode(text, out_type="serialized_proto")), np.int64).reshape(-1, 3)
        return TokenSpans(found[:, 0].astype(self._dtype), found[:, 1], found[:, 2])

    def decode(self, tokens: np.ndarray) -> str:
        ids = np.asarray(tokens, dtype=np.int64)
        is_added = ids >= self._num_pieces
        first = int(np.argmax(is_added)) if is_added.any() else len(ids)
        return self._processor.decode(ids[:first].tolist()) + self._bytes.decode(ids[first:])

    def num_bytes(self, tokens: np.ndarray) -> int:
        return self._bytes.num_bytes(tokens)

    def num_unknown(self, text: str, tokens: np.ndarray) -> int:
        """Returns the number of tokens for unknown characters."""
        return int(np.count_nonzero(tokens == self._processor.unk_id()))

    @functools.cached_property
    def control_tokens(self) -> Mapping[str, SpecialToken]:
        """Control and user-defined symbols, and added tokens, by their text."""
        processor = self._processor
        control = {
            processor.id_to_piece(token): token for token in range(self._num_pieces) if processor.is_control(token)
        }
        named = {**control, **symbols(self._content), **self._added}
        return {name: SpecialToken(token) for name, token in named.items()}

    def save(self, folder: Path) -> SavedArguments:
        (folder / _FILE).write_bytes(self._content)
        given = {
            "end_of_document": self._end_of_document,
            "begin_of_document": self._begin_of_document,
            "added_tokens": self._added_tokens or None,
            "symbols_in_text": self._symbols_in_text or None,
        }
        return SavedArguments({name: value for name, value in given.items() if value is not None}, {"path": _FILE})

    def definition(self) -> Definition:
        """Returns the model, and added tokens."""
        added = {token: name for name, token in self._added.items()}
        return Definition(["SentencePiece", hashlib.sha256(self._content).hexdigest()], added)

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
        """The model as it is, which decodes."""
        return self._loaded(self._content)

    @functools.cached_property
    def _whole(self) -> "sentencepiece.SentencePieceProcessor":
        """Encodes whole texts."""
        return self._changed(is_part=False, is_start=True)

    @functools.cached_property
    def _first(self) -> "sentencepiece.SentencePieceProcessor":
        """Encodes the first part of a text."""
        return self._changed(is_part=True, is_start=True)

    @functools.cached_property
    def _continuing(self) -> "sentencepiece.SentencePieceProcessor":
        """Encodes parts that follow others: no space is prepended."""
        return self._changed(is_part=True, is_start=False)

    def _changed(self, *, is_part: bool, is_start: bool) -> "sentencepiece.SentencePieceProcessor":
        _ = self._processor  # reports a file that is no model
        hides = not self._symbols_in_text
        return self._loaded(changed(self._content, hides_symbols=hides, is_part=is_part, is_start=is_start))

    def _loaded(self, model: bytes) -> "sentencepiece.SentencePieceProcessor":
        sentencepiece = optional_import("sentencepiece", "tokenizers", "SentencePieceTokenizer", DataError)
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.load_from_serialized_proto(model)
        except RuntimeError as error:
            raise DataError(
                f"{self.path} (SentencePieceTokenizer.path) is not a SentencePiece model: {error}"
            ) from None
        return processor

    @functools.cached_property
    def _num_pieces(self) -> int:
        return self._processor.vocab_size()

    @functools.cached_property
    def _dtype(self) -> np.dtype:
        return np.min_scalar_type(self.vocab_size - 1)

    @functools.cached_property
    def _added(self) -> dict[str, int]:
        """Tokens that the model has not, with their ids."""
        processor, hidden = self._processor, symbols(self._content)
        new = []
        for name in dict.fromkeys(self._added_tokens):
            token = processor.piece_to_id(name)
            if processor.id_to_piece(token) != name:
                new.append(name)
            elif name not in hidden and not processor.is_control(token):
                raise DataError(f"SentencePieceTokenizer.added_tokens: {name!r} is an ordinary token of {self.path}")
        return {name: self._num_pieces + index for index, name in enumerate(new)}

    def _named(self, parameter: str, name: str | None, symbol: int) -> int | None:
        if name is None:
            return symbol if symbol >= 0 else None
        if name == "":
            return None
        if name not in self.control_tokens:
            listed = ", ".join(self.control_tokens) or "none"
            raise DataError(
                f"SentencePieceTokenizer.{parameter}: {name!r} is not a special token of {self.path}, which has "
                f"{listed}"
            )
        return self.control_tokens[name].id

    @functools.cached_property
    def _bytes(self) -> TokenBytes:
        processor = self._processor
        special = {token: name for name, token in self._added.items()}
        if not self._symbols_in_text:
            special |= {token: name for name, token in symbols(self._content).items()}
        pieces = []
        for token in range(self._num_pieces):
            piece = processor.id_to_piece(token)
            if processor.is_control(token) or processor.is_unknown(token):
                special[token] = piece
            is_byte = processor.is_byte(token)  # written <0x0A>
            pieces.append(bytes([int(piece[3:5], 16)]) if is_byte else piece.replace(_SPACE, " ").encode())
        return TokenBytes([*pieces, *(b"" for _ in self._added)], special)
