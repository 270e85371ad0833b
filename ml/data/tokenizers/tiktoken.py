"""Tiktoken tokenizers: fast byte pair encoding by ranks."""

import base64
import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np

from ml.config import UNORDERED, configurable, require
from ml.data.errors import DataError
from ml.data.tokenizers.base import SavedArguments, SpecialToken, Tokenizer
from ml.data.tokenizers.definition import Definition
from ml.data.tokenizers.token_bytes import TokenBytes
from ml.data.tokenizers.word_ends import WORD_END, is_cut_at_word_ends
from ml.optional import optional_import

if TYPE_CHECKING:
    import tiktoken

_RANKS_FILE = "ranks.tiktoken"
_SAMPLE = (
    "Some text, it's 12 words:\tétude 漢字 😀!?\r\n\n  end_of_it \u0301 "  # one of each kind that patterns distinguish
)


@configurable
class TiktokenTokenizer(Tokenizer):
    """Byte pair encoding of the library tiktoken.

    Args:
        encoding: Name of an encoding, such as "cl100k_base". Its file is read from the folder TIKTOKEN_CACHE_DIR, or
            downloaded by tiktoken. None uses `path`.
        path: File of ranks, as an alternative to `encoding`: one token a line, its bytes in base64 and its rank. None
            uses `encoding`.
        pattern: Regular expression that splits text into words, required with `path`; it must match all text.
        special_tokens: Token id of each special token, with `path`. None is no special tokens.
        end_of_document: Special token after each document; None for none.
        begin_of_document: Special token before each document; None for none.
        added_tokens: Special tokens to add after the vocabulary, in this order; those that there are keep their ids.
    """

    def __init__(
        self,
        encoding: str | None = None,
        path: str | None = None,
        pattern: str | None = None,
        special_tokens: Annotated[dict[str, int], UNORDERED] | None = None,
        end_of_document: str | None = "<|endoftext|>",
        begin_of_document: str | None = None,
        added_tokens: Sequence[str] = (),
    ):
        require(
            (encoding is None) != (path is None),
            "encoding",
            "or `path` must be set, but not both: `encoding` is a name, `path` a file",
        )
        require((path is None) == (pattern is None), "pattern", "and `path` must be set together")
        require(
            path is not None or special_tokens is None,
            "special_tokens",
            "must be None without `path`: an encoding defines its special tokens",
        )
        self.encoding = encoding
        self.path = path
        self.pattern = pattern
        self.special_tokens = special_tokens or {}
        self._end_of_document = end_of_document
        self._begin_of_document = begin_of_document
        self._added_tokens = list(added_tokens)

    @property
    def source(self) -> str:  # type: ignore[override]
        """The name, or the file of ranks."""
        return self.encoding or self.path or ""

    @property
    def vocab_size(self) -> int:
        """Exclusive upper bound of the token ids."""
        return self._encoding.max_token_value + 1

    @functools.cached_property
    def end_of_document(self) -> int | None:
        """Token after each document."""
        return self._named_token("end_of_document", self._end_of_document)

    @functools.cached_property
    def begin_of_document(self) -> int | None:
        """Token before each document."""
        return self._named_token("begin_of_document", self._begin_of_document)

    def _named_token(self, parameter: str, name: str | None) -> int | None:
        special = self._encoding._special_tokens
        if name is not None and name not in special:
            raise DataError(
                f"TiktokenTokenizer.{parameter}: {name!r} is not a special token; there are "
                f"{', '.join(special) or 'none'} (TiktokenTokenizer.special_tokens)"
            )
        return None if name is None else special[name]

    @functools.cached_property
    def safe_cut(self) -> re.Pattern[bytes] | None:
        """Ends of words, if the pattern is known to split there in any text."""
        return WORD_END if is_cut_at_word_ends(self._encoding._pat_str) else None

    def encode(self, text: str) -> np.ndarray:
        try:
            tokens = self._encoding.encode_to_numpy(text, disallowed_special=())
        except ValueError:  # the limit of its regular expressions, such as for a million spaces
            tokens = self._encoded_by_words(text)
        return tokens.astype(self._dtype)

    def _encoded_by_words(self, text: str) -> np.ndarray:
        """Encodes text with another library of regular expressions, which has no such limit."""
        regex = optional_import("regex", "tokenizers", "TiktokenTokenizer", DataError)
        words = regex.compile(self._encoding._pat_str).finditer(text)
        tokens = [self._encoding._core_bpe.encode_single_piece(word[0].encode()) for word in words]
        return np.array(list(itertools.chain.from_iterable(tokens)), np.uint32)

    def decode(self, tokens: np.ndarray) -> str:
        return self._bytes.decode(tokens)

    def num_bytes(self, tokens: np.ndarray) -> int:
        return self._bytes.num_bytes(tokens)

    @functools.cached_property
    def control_tokens(self) -> Mapping[str, SpecialToken]:
        """Special tokens by their text."""
        return {text: SpecialToken(token) for text, token in self._encoding._special_tokens.items()}

    def save(self, folder: Path) -> SavedArguments:
        """Writes the ranks, also for a named encoding, whose file may be missing later."""
        encoding = self._encoding
        (folder / _RANKS_FILE).write_bytes(self._lines)
        arguments = {
            "pattern": encoding._pat_str,
            "special_tokens": encoding._special_tokens,
            "end_of_document": self._end_of_document,
        }
        if self._begin_of_document is not None:
            arguments["begin_of_document"] = self._begin_of_document
        return SavedArguments(arguments, {"path": _RANKS_FILE})

    def definition(self) -> Definition:
        """Returns ranks, pattern and special tokens."""
        encoding = self._encoding
        ranks = sorted((rank, piece.hex()) for piece, rank in encoding._mergeable_ranks.items())
        names = {token: name for name, token in encoding._special_tokens.items()}
        last = ranks[-1][0] if ranks else -1
        among = sorted([token, name] for token, name in names.items() if token <= last)
        added = {token: name for token, name in names.items() if token > last}
        return Definition({"ranks": ranks, "pattern": encoding._pat_str, "special": among}, added)

    @functools.cached_property
    def _encoding(self) -> "tiktoken.Encoding":
        found = self._configured
        if not (names := [name for name in self._added_tokens if name not in found._special_tokens]):
            return found
        first = found.max_token_value + 1
        special = {**found._special_tokens, **{name: first + index for index, name in enumerate(names)}}
        return type(found)(
            found.name, pat_str=found._pat_str, mergeable_ranks=found._mergeable_ranks, special_tokens=special
        )

    @functools.cached_property
    def _configured(self) -> "tiktoken.Encoding":
        tiktoken = optional_import("tiktoken", "tokenizers", "TiktokenTokenizer", DataError)
        if self.encoding is not None:
            return _named(tiktoken, self.encoding)
        assert self.path is not None  # one of the two is given, and with the path a pattern
        assert self.pattern is not None
        ranks = _read_ranks(Path(self.path))
        if shared := set(self.special_tokens.values()) & set(ranks.values()):
            raise DataError(f"TiktokenTokenizer.special_tokens: {min(shared)} is already a token of {self.path}")
        try:
            encoding = tiktoken.Encoding(
                self.path, pat_str=self.pattern, mergeable_ranks=ranks, special_tokens=self.special_tokens
            )
        except ValueError as error:
            raise DataError(f"TiktokenTokenizer.pattern: tiktoken rejects {self.pattern!r}: {error}") from None
        _check_pattern(encoding, self.pattern)
        return encoding

    @functools.cached_property
    def _lines(self) -> bytes:
        """Ranks in the format of the file."""
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
        raise DataError(f"TiktokenTokenizer.encoding: tiktoken has no {name!r}; available are {', '.join(known)}")
    try:
        return tiktoken.get_encoding(name)
    except Exception as error:  # downloads and the cache raise many types
        raise DataError(
            f"tiktoken cannot load {name!r} ({type(error).__name__}: {error}). Put its file into the folder "
            "TIKTOKEN_CACHE_DIR, or use a file of ranks: TiktokenTokenizer.path and .pattern"
        ) from None


def _check_pattern(encoding: "tiktoken.Encoding", pattern: str) -> None:
    """Encodes a sample, because tiktoken silently drops text that the pattern does not match.

    Raises:
        DataError: Text is dropped, or the pattern has an empty match.
    """
    try:
        decoded = encoding.decode(encoding.encode_ordinary(_SAMPLE))
    except BaseException as error:  # a panic of Rust has no public class, only a name
        if type(error).__name__ != "PanicException":
            raise
        raise DataError(f"TiktokenTokenizer.pattern: tiktoken fails with {pattern!r}: {error}") from None
    if decoded != _SAMPLE:
        raise DataError(f"TiktokenTokenizer.pattern does not match all text: it reduces {_SAMPLE!r} to {decoded!r}")


def _read_ranks(file: Path) -> dict[bytes, int]:
    """Reads the rank of each token, by its bytes.

    Raises:
        DataError: The file cannot be read, or is not a file of ranks.
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
        raise DataError(f"{file} lacks some of the 256 single bytes, so it cannot encode all text")
    if len(set(ranks.values())) < len(ranks):
        raise DataError(f"{file} assigns a rank to several tokens")
    return ranks
