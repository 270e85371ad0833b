"""Base class of tokenizers."""

import abc
import functools
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ml.data.tokenizers.definition import Definition, lineage_of
from ml.files import sha256_of_file


class SavedArguments(NamedTuple):
    """Arguments that reconstruct a tokenizer from files in a folder.

    Attributes:
        arguments: Arguments of the constructor other than files, serializable as JSON.
        files: File name in the folder for each argument that is a file.
    """

    arguments: dict[str, Any]
    files: dict[str, str]


class TokenSpans(NamedTuple):
    """Tokens of a text and the characters that they represent.

    Attributes:
        tokens: (tokens,).
        starts: Position of the first character of each token, (tokens,).
        ends: Position after the last character of each token, (tokens,).
    """

    tokens: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class SpecialToken(NamedTuple):
    """Special token of a tokenizer.

    Attributes:
        id: Token id.
        takes_before: True if the token includes the white space before its text.
        takes_after: True if it includes the white space after.
    """

    id: int
    takes_before: bool = False
    takes_after: bool = False


class Tokenizer(abc.ABC):
    """Maps text to token ids in [0, vocab_size).

    Files are read on first use; a `DataError` reports that this failed. Text is never interpreted: "<|endoftext|>" in a
    text is encoded as ordinary characters, not as the special token.

    Attributes:
        vocab_size: Exclusive upper bound of the token ids, special tokens included.
        end_of_document: Token after each document, which no text contains; None if there is none.
        begin_of_document: Token before each document, which no text contains; None if there is none.
        safe_cut: Pattern in UTF-8 after whose matches long text may be cut: the tokens of the pieces are the tokens of
            the whole. None if no such positions are known.
        source: File or name that it was configured with, for messages; "" if there is none.
    """

    if TYPE_CHECKING:  # each an attribute or a property

        @property
        def vocab_size(self) -> int: ...
        @property
        def end_of_document(self) -> int | None: ...
        @property
        def begin_of_document(self) -> int | None: ...
        @property
        def safe_cut(self) -> re.Pattern[bytes] | None: ...

    else:
        begin_of_document = None
        safe_cut = None

    source: str = ""

    @functools.cached_property
    def lineage(self) -> tuple[str, ...]:
        """Identities of this tokenizer without its last special tokens, shortest first, and its own."""
        return lineage_of(self.definition())

    @functools.cached_property
    def identity(self) -> str:
        """SHA-256 of vocabulary, merges and special tokens, independent of the format and place of the files."""
        return self.lineage[-1]

    def definition(self) -> Definition:
        """Returns what decides the tokens of a text; by default the class, its arguments and its files."""
        with tempfile.TemporaryDirectory() as folder:
            arguments, files = self.save(Path(folder))
            contents = {argument: sha256_of_file(Path(folder) / file) for argument, file in files.items()}
        return Definition([type(self).__qualname__, arguments, contents], {})

    @abc.abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Returns the tokens of `text`, (tokens,), in an unsigned type that holds `vocab_size - 1`."""

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Returns the tokens of each text."""
        return [self.encode(text) for text in texts]

    @abc.abstractmethod
    def decode(self, tokens: np.ndarray) -> str:
        """Returns the text of `tokens`, (tokens,); special tokens appear as the library shows them."""

    @abc.abstractmethod
    def num_bytes(self, tokens: np.ndarray) -> int:
        """Returns the number of UTF-8 bytes that the tokens represent, for a loss per byte that does not depend on the
        tokenizer.

        Special tokens represent none.
        """

    def num_unknown(self, text: str, tokens: np.ndarray) -> int:
        """Returns the number of characters of a text that its tokens do not represent.

        Args:
            text: The text.
            tokens: Its tokens, (tokens,).
        """
        return 0

    def encode_with_spans(self, text: str, is_start: bool) -> TokenSpans | None:
        """Returns the tokens of `text` with their characters; None if the tokenizer does not relate them.

        Args:
            text: The text.
            is_start: False for text that follows other text, before which no space is added.
        """
        return None

    def encode_parts(self, parts: Sequence[tuple[str, bool]]) -> list[np.ndarray]:
        """Returns the tokens of parts of documents, each encoded separately.

        Args:
            parts: Each text, and whether it is the start of a document; before other texts no space is added.
        """
        spans = [self.encode_with_spans(text, is_start) for text, is_start in parts]
        return [
            self.encode(text) if found is None else found.tokens for (text, _), found in zip(parts, spans, strict=True)
        ]

    @property
    def control_tokens(self) -> Mapping[str, SpecialToken]:
        """Special tokens by their text."""
        return {}

    @property
    def folder(self) -> Path | None:
        """Folder of its files, which may contain a chat template; None if there is none."""
        return None

    def special_token(self, text: str) -> int | None:
        """Returns the id of the special token written as `text`, such as "<|im_start|>"; None if there is none."""
        found = self.control_tokens.get(text)
        return None if found is None else found.id

    @abc.abstractmethod
    def save(self, folder: Path) -> SavedArguments:
        """Writes the tokenizer's files into the existing `folder` and returns the arguments that reconstruct it."""
