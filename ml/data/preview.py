"""Sequences of a batch as decoded text, with the documents separated and the targets marked."""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ml.data.sequences.batch import Batch
from ml.data.tokenizers import Tokenizer
from ml.targets import IGNORED


class Span(NamedTuple):
    """Consecutive tokens that are all learned, or all given.

    Attributes:
        tokens: Token ids.
        is_learned: True if the model is trained to predict them.
    """

    tokens: list[int]
    is_learned: bool


class Reader(NamedTuple):
    """Decodes tokens for a preview.

    Attributes:
        tokenizer: Tokenizer of the tokens.
        image_token: Token at the positions of images; None if there are none.
    """

    tokenizer: Tokenizer
    image_token: int | None = None

    def text(self, tokens: list[int]) -> str:
        """Returns the text of tokens; control characters are escaped, images and unknown tokens are named."""
        kinds = np.array([self._kind(token) for token in tokens])
        borders = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(tokens)]
        return "".join(self._part(tokens[first:end], kinds[first]) for first, end in pairwise(borders) if first < end)

    def _kind(self, token: int) -> int:
        if token == self.image_token:
            return 1
        return 0 if token < self.tokenizer.vocab_size else 2

    def _part(self, tokens: list[int], kind: int) -> str:
        if kind == 1:
            return f"<image of {len(tokens)} tokens>"
        if kind == 2:
            return "".join(f"<token {token}>" for token in tokens)
        return printable(self.tokenizer.decode(np.array(tokens)))


def printable(text: str) -> str:
    """Escapes all control characters but line breaks and tabs, as a terminal would execute them."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def documents(batch: Batch, row: int, separator: int | None = None) -> Iterator[list[Span]]:
    """Yields the documents of a sequence, without padding; the target of the last token is its last token.

    Args:
        batch: The batch.
        row: Index of the sequence.
        separator: Token after which a new document begins, for batches without document ids; None for none.
    """
    tokens, targets = batch.tokens[row].numpy(), batch.targets[row].numpy()
    used = np.flatnonzero((targets != IGNORED) | (tokens != 0))
    end = int(used[-1]) + 1 if len(used) else 0
    if batch.documents is not None:
        borders = np.flatnonzero(np.diff(batch.documents[row].numpy()[:end])) + 1
        for first, last in pairwise([0, *borders.tolist(), end]):
            yield _spans(*_with_last_target(tokens[first:last], targets[first:last]))
        return
    ids, is_learned = _with_last_target(tokens[:end], targets[:end])
    borders = np.flatnonzero(ids[:-1] == separator) + 1
    for first, last in pairwise([0, *borders.tolist(), len(ids)]):
        yield _spans(ids[first:last], is_learned[first:last])


def _with_last_target(tokens: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens with the last target, unless it is ignored, and whether each is learned."""
    is_target = targets != IGNORED
    if not is_target[-1:].any():
        return tokens, np.append(False, is_target[:-1])[: len(tokens)]
    return np.append(tokens, targets[-1]), np.append(False, is_target)


def _spans(tokens: np.ndarray, is_learned: np.ndarray) -> list[Span]:
    borders = np.flatnonzero(np.diff(is_learned)) + 1
    pieces = pairwise([0, *borders.tolist(), len(tokens)])
    return [Span(tokens[first:end].tolist(), bool(is_learned[first])) for first, end in pieces if first < end]
