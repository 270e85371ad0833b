"""Batches: the inputs of one call of the model."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from ml.data.errors import DataError
from ml.targets import IGNORED


class Batch(NamedTuple):
    """Sequences with their targets.

    Attributes:
        tokens: (B, T) int64.
        targets: (B, T) int64, the next token of each position; `IGNORED` for positions without a target.
        num_targets: Number of targets that count, known on the host so that dividing a loss by it does not synchronize.
        images: (I, C, height, width) float32, in the order of their tokens; None without images.
        images_per_sequence: Number of images of each sequence; empty without images.
        documents: (B, T) int64, the document index of each token; None if documents are not separated.
        pairs_per_sequence: Number of pairs of a preferred and a rejected answer in each sequence; empty without pairs.
            Pair k of a sequence is its documents 2k, preferred, and 2k + 1, rejected.
    """

    tokens: Tensor
    targets: Tensor
    num_targets: int
    images: Tensor | None = None
    images_per_sequence: tuple[int, ...] = ()
    documents: Tensor | None = None
    pairs_per_sequence: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        tokens: np.ndarray,
        targets: np.ndarray,
        images: np.ndarray | None = None,
        images_per_sequence: tuple[int, ...] = (),
        documents: np.ndarray | None = None,
    ) -> Self:
        """Converts arrays to a batch.

        Args:
            tokens: (B, T) integers.
            targets: (B, T) integers.
            images: (I, C, height, width), or None.
            images_per_sequence: Number of images of each sequence.
            documents: (B, T) integers, or None.
        """
        return cls(
            torch.from_numpy(tokens.astype(np.int64)),
            torch.from_numpy(targets.astype(np.int64)),
            int(np.count_nonzero(targets != IGNORED)),
            None if images is None else torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32)),
            images_per_sequence,
            None if documents is None else torch.from_numpy(documents.astype(np.int64)),
        )

    @classmethod
    def interleaved(cls, batches: Sequence[Self], rows: np.ndarray) -> Self:
        """Merges several batches into one.

        Either all of them have document ids, or none.

        Args:
            batches: The batches.
            rows: Destination row of each sequence, (B,), for the concatenated batches.
        """
        if len(batches) == 1 and (rows == np.arange(len(rows))).all():
            return batches[0]
        order = torch.from_numpy(np.argsort(rows))
        documents = None
        if batches[0].documents is not None:
            documents = torch.cat([batch.documents for batch in batches if batch.documents is not None])[order]
        images, counts = _interleaved_images(batches, order)
        return cls(
            torch.cat([batch.tokens for batch in batches])[order],
            torch.cat([batch.targets for batch in batches])[order],
            sum(batch.num_targets for batch in batches),
            images,
            counts,
            documents,
            _interleaved_pairs(batches, order),
        )

    @property
    def num_pairs(self) -> int:
        """Number of pairs of all sequences."""
        return sum(self.pairs_per_sequence)

    def with_documents(self) -> Self:
        """Returns the batch with document ids; without any, each sequence becomes one document."""
        return self if self.documents is not None else self._replace(documents=torch.zeros_like(self.tokens))

    def require_below(self, vocab_size: int) -> Self:
        """Returns the batch after checking that all tokens and targets are below `vocab_size`.

        Raises:
            DataError: One is not.
        """
        largest = int(max(self.tokens.max(), self.targets.max()))
        if largest >= vocab_size:
            raise DataError(
                f"the data has token {largest}, but LanguageModel.vocab_size is {vocab_size}: "
                "the files are damaged, or were made for another model"
            )
        return self

    @property
    def inputs(self) -> dict[str, Any]:
        """Keyword arguments of the model's loss; absent inputs are omitted."""
        optional = {"images": self.images, "documents": self.documents}
        given = {name: tensor for name, tensor in optional.items() if tensor is not None}
        return {"tokens": self.tokens, "targets": self.targets, **given}

    def split(self, size: int) -> list[Self]:
        """Splits the batch into batches of at most `size` sequences, each with its images."""
        rows, targets = self.tokens.split(size), self.targets.split(size)
        documents = [None] * len(rows) if self.documents is None else self.documents.split(size)
        counts = [int((piece != IGNORED).sum()) for piece in targets]
        pairs = [self.pairs_per_sequence[first : first + size] for first in range(0, len(self.tokens), size)]
        pieces = zip(rows, targets, counts, self._split_images(size), documents, pairs, strict=True)
        return [
            type(self)(tokens, wanted, count, images, image_counts, document, of_rows)
            for tokens, wanted, count, (images, image_counts), document, of_rows in pieces
        ]

    def _split_images(self, size: int) -> list[tuple[Tensor | None, tuple[int, ...]]]:
        counts = [self.images_per_sequence[first : first + size] for first in range(0, len(self.tokens), size)]
        if self.images is None:
            return [(None, piece) for piece in counts]
        return list(zip(self.images.split([sum(piece) for piece in counts]), counts, strict=True))

    def pinned(self) -> Self:
        """Copies the batch to page-locked memory, from which transfers to the GPU are asynchronous."""
        return self._each(Tensor.pin_memory)

    def ready_for(self, device: torch.device) -> Self:
        """Returns the batch in memory from which it is copied to `device` asynchronously: page-locked for a GPU."""
        return self.pinned() if device.type == "cuda" else self

    def to(self, device: torch.device) -> Self:
        """Copies the batch to `device` asynchronously."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def empty_on(self, device: torch.device) -> Self:
        """Returns a batch of the same shapes on `device`, with undefined contents."""
        return self._each(lambda tensor: torch.empty_like(tensor, device=device, pin_memory=False))

    def _each(self, move: Callable[[Tensor], Tensor]) -> Self:
        images, documents = (None if tensor is None else move(tensor) for tensor in (self.images, self.documents))
        return self._replace(tokens=move(self.tokens), targets=move(self.targets), images=images, documents=documents)


def _interleaved_pairs(batches: Sequence[Batch], order: Tensor) -> tuple[int, ...]:
    """Returns the number of pairs of each of the reordered sequences."""
    flat = [count for batch in batches for count in batch.pairs_per_sequence]
    return tuple(flat[row] for row in order.tolist()) if flat else ()


def _interleaved_images(batches: Sequence[Batch], order: Tensor) -> tuple[Tensor | None, tuple[int, ...]]:
    """Returns the images in the order of the reordered sequences, and the number of images of each sequence."""
    with_images = [batch.images for batch in batches if batch.images is not None]
    if not with_images:
        return None, ()
    counts = [batch.images_per_sequence or (0,) * len(batch.tokens) for batch in batches]
    flat = [count for part in counts for count in part]
    pieces = torch.cat(with_images).split(flat)
    return torch.cat([pieces[row] for row in order.tolist()]), tuple(flat[row] for row in order.tolist())
