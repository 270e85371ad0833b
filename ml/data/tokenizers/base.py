"""What a tokenizer is."""

import abc
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class SavedArguments(NamedTuple):
    """How a tokenizer is made again: by its constructor, from files that were put in a folder.

    arguments: what the constructor takes besides files, as JSON can write it. files: the arguments that are files, by
    name: each the name of a file in the folder.
    """

    arguments: dict[str, Any]
    files: dict[str, str]


class Tokenizer(abc.ABC):
    """Maps text to tokens in [0, vocab_size).

    What a tokenizer reads, it reads when it is first used, and says with a `DataError` that it cannot. Text is only
    ever text: where "<|endoftext|>" stands in it, that becomes the tokens of these characters and not the special one.

    Attributes:
        vocab_size: all tokens are below it, special ones included.
        end_of_document: the token that stands behind each document and in no text; None where there is none.
        may_cut_behind: where long text may be cut, in UTF-8: behind any match of this pattern, the tokens of both
            pieces are the tokens of the whole. None where no such places are known.
    """

    vocab_size: int
    end_of_document: int | None
    may_cut_behind: re.Pattern[bytes] | None = None

    @abc.abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """The tokens of `text`, (tokens,), in an unsigned type that holds them."""

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """The tokens of each text."""
        return [self.encode(text) for text in texts]

    @abc.abstractmethod
    def decode(self, tokens: np.ndarray) -> str:
        """The text of `tokens`; special ones show as the library shows them."""

    @abc.abstractmethod
    def num_bytes(self, tokens: np.ndarray) -> int:
        """How many bytes of UTF-8 the tokens stand for: the measure of a loss that no tokenizer can flatter.

        Special tokens stand for none.
        """

    def special_token(self, text: str) -> int | None:
        """The special token that is written as `text`, such as "<|im_start|>"; None where there is none."""
        return None

    @abc.abstractmethod
    def save(self, folder: Path) -> SavedArguments:
        """Writes the files that it is made of into `folder`, which exists, and tells how to make it from them."""
