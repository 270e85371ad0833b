"""Tokenizers of tiktoken: byte pair encoding by ranks, the fastest there is."""

import base64
import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np

from ml.config import UNORDERED, configurable, require
from ml.data.errors import DataError
from ml.data.tokenizers.base import SavedArguments, Tokenizer
from ml.data.tokenizers.line_ends import LETTER_BEFORE_LINE_END, is_cut_at_line_ends
from ml.data.tokenizers.token_bytes import TokenBytes
from ml.optional import optional_import

if TYPE_CHECKING:
    import tiktoken

_RANKS_FILE = "ranks.tiktoken"
_SAMPLE = (
    "Some text, it's 12 words:\tétude 漢字 😀!?\r\n\n  end_of_it \u0301 "  # of everything that patterns tell apart
)


@configurable
class TiktokenTokenizer(Tokenizer):
    """Byte pair encoding as tiktoken does it.

    Args:
        encoding: A named one, such as "cl100k_base". Its file is taken from the folder TIKTOKEN_CACHE_DIR, and tiktoken
            downloads it where it is not there.
        path: In place of a name, a file of ranks: a line for each token, its bytes in base64 and its rank.
        pattern: With `path`, the regular expression that cuts text into the pieces that are encoded; what it does not
            match would be lost.
        special_tokens: With `path`, tokens that stand in no text, by how they are written.
        end_of_document: The special token behind each document; None for none.
    """

    def __init__(
        self,
        encoding: str | None = None,
        path: str | None = None,
        pattern: str | None = None,
        special_tokens: Annotated[dict[str, int], UNORDERED] | None = None,
        end_of_document: str | None = "<|endoftext|>",
    ):
        require(
            (encoding is None) != (path is None),
            "encoding",
            "or `path` must be given: `encoding` is a name, `path` a file, not both",
        )
        require((path is None) == (pattern is None), "pattern", "goes with `path`, and `path` with it")
        require(
            path is not None or special_tokens is None, "special_tokens", "goes with `path`: an encoding has its own"
        )
        self.encoding = encoding
        self.path = path
        self.pattern = pattern
        self.special_tokens = special_tokens or {}
        self._end_of_document = end_of_document

    @property
    def vocab_size(self) -> int:
        """All tokens are below this number."""
        return self._encoding.max_token_value + 1

    @functools.cached_property
    def end_of_document(self) -> int | None:
        """The token behind each document."""
        special = self._encoding._special_tokens
        if self._end_of_document is not None and self._end_of_document not in special:
            raise DataError(
                f"TiktokenTokenizer.end_of_document: {self._end_of_document!r} is no special token, "
                f"{', '.join(special) or 'of which there are none'} (TiktokenTokenizer.special_tokens)"
            )
        return None if self._end_of_document is None else special[self._end_of_document]

    @functools.cached_property
    def may_cut_behind(self) -> re.Pattern[bytes] | None:
        """Behind letters that end a line, where its pattern is known to cut in any text."""
        return LETTER_BEFORE_LINE_END if is_cut_at_line_ends(self._encoding._pat_str) else None

    def encode(self, text: str) -> np.ndarray:
        tokens = self._encoding.encode_to_numpy(text, disallowed_special=())
        return tokens.astype(self._dtype)

    def decode(self, tokens: np.ndarray) -> str:
        return self._bytes.decode(tokens)

    def num_bytes(self, tokens: np.ndarray) -> int:
        return self._bytes.num_bytes(tokens)

    def special_token(self, text: str) -> int | None:
        return self._encoding._special_tokens.get(text)

    def save(self, folder: Path) -> SavedArguments:
        """The ranks, also those of a named encoding, whose file may not be there another time."""
        encoding = self._encoding
        (folder / _RANKS_FILE).write_bytes(self._lines)
        arguments = {
            "pattern": encoding._pat_str,
            "special_tokens": encoding._special_tokens,
            "end_of_document": self._end_of_document,
        }
        return SavedArguments(arguments, {"path": _RANKS_FILE})

    @functools.cached_property
    def _encoding(self) -> "tiktoken.Encoding":
        tiktoken = optional_import("tiktoken", "tokenizers", "TiktokenTokenizer", DataError)
        if self.path is None:
            return _named(tiktoken, self.encoding)
        ranks = _read_ranks(Path(self.path))
        if shared := set(self.special_tokens.values()) & set(ranks.values()):
            raise DataError(f"TiktokenTokenizer.special_tokens: {min(shared)} is a token of {self.path} already")
        try:
            encoding = tiktoken.Encoding(
                self.path, pat_str=self.pattern, mergeable_ranks=ranks, special_tokens=self.special_tokens
            )
        except ValueError as error:
            raise DataError(f"TiktokenTokenizer.pattern: tiktoken does not take {self.pattern!r}: {error}") from None
        _check_pattern(encoding, self.pattern)
        return encoding

    @functools.cached_property
    def _lines(self) -> bytes:
        """The ranks, a line each."""
        ranks = sorted((rank, piece) for piece, rank in self._encoding._mergeable_ranks.items())
        return b"".join(b"%s %d\n" % (base64.b64encode(piece), rank) for rank, piece in ranks)

    @functools.cached_property
    def _dtype(self) -> np.dtype:
        return np.min_scalar_type(self.vocab_size - 1)

    @functools.cached_property
    def _bytes(self) -> TokenBytes:
        pieces = [b""] * self.vocab_size
        for piece, rank in self._encoding._mergeable_ranks.items():
            pieces[rank] = piece
        return TokenBytes(pieces, {token: text for text, token in self._encoding._special_tokens.items()})


def _named(tiktoken, name: str) -> "tiktoken.Encoding":
    known = tiktoken.list_encoding_names()
    if name not in known:
        raise DataError(f"TiktokenTokenizer.encoding: tiktoken has no {name!r}; there are {', '.join(known)}")
    try:
        return tiktoken.get_encoding(name)
    except Exception as error:  # whatever its downloads and its cache may raise
        raise DataError(
            f"tiktoken cannot load {name!r} ({type(error).__name__}: {error}). Put its file into a folder "
            "TIKTOKEN_CACHE_DIR, or give a file of ranks: TiktokenTokenizer.path and .pattern"
        ) from None


def _check_pattern(encoding: "tiktoken.Encoding", pattern: str) -> None:
    """Encodes a sample: what a pattern does not match is left out without a word.

    Raises:
        DataError: Something is left out, or the pattern matches nothing at all somewhere.
    """
    try:
        left = encoding.decode(encoding.encode_ordinary(_SAMPLE))
    except BaseException as error:  # a panic of Rust derives from no nearer class, and can only be told by its name
        if type(error).__name__ != "PanicException":
            raise
        raise DataError(f"TiktokenTokenizer.pattern: tiktoken fails with {pattern!r}: {error}") from None
    if left != _SAMPLE:
        raise DataError(f"TiktokenTokenizer.pattern does not match all text: of {_SAMPLE!r} it leaves {left!r}")


def _read_ranks(file: Path) -> dict[bytes, int]:
    """The rank of each token of a file, by its bytes.

    Raises:
        DataError: The file cannot be read, or is no file of ranks.
    """
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"cannot read {file} (TiktokenTokenizer.path, from {Path.cwd()}): {error.strerror}") from None
    ranks = {}
    for number, line in enumerate(lines, start=1):
        try:
            piece, rank = line.split()
            ranks[base64.b64decode(piece, validate=True)] = int(rank)
        except ValueError:
            raise DataError(f"{file}:{number} is not a token in base64 and its rank") from None
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise DataError(f"{file} lacks some of the 256 single bytes: there is text that it cannot encode")
    if len(set(ranks.values())) < len(ranks):
        raise DataError(f"{file} gives one rank to several tokens")
    return ranks
