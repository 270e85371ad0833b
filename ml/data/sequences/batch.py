"""What one call of the model is given."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from ml.data.errors import DataError
from ml.targets import IGNORED


class Batch(NamedTuple):
    """Sequences and what follows each of their tokens.

    `num_targets`, the targets that count, is known on the host: a loss can be divided by it before the device is done.
    """

    tokens: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64, `IGNORED` where nothing is to be predicted
    num_targets: int
    images: Tensor | None = None  # (I, C, height, width) float32, in the order of their tokens
    images_per_sequence: tuple[int, ...] = ()
    documents: Tensor | None = None  # (B, T) int64, the number of the document of each token

    @classmethod
    def of(
        cls,
        tokens: np.ndarray,
        targets: np.ndarray,
        images: np.ndarray | None = None,
        images_per_sequence: tuple[int, ...] = (),
        documents: np.ndarray | None = None,
    ) -> Self:
        """A batch of (B, T) arrays of whole numbers, and of images where there are some."""
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
        """The sequences of several batches in one: the n-th of all of them becomes row `rows[n]`.

        All of them tell documents apart, or none does.
        """
        if len(batches) == 1 and (rows == np.arange(len(rows))).all():
            return batches[0]
        order = torch.from_numpy(np.argsort(rows))
        documents = None
        if batches[0].documents is not None:
            documents = torch.cat([batch.documents for batch in batches])[order]
        images, counts = _interleaved_images(batches, order)
        return cls(
            torch.cat([batch.tokens for batch in batches])[order],
            torch.cat([batch.targets for batch in batches])[order],
            sum(batch.num_targets for batch in batches),
            images,
            counts,
            documents,
        )

    def with_documents(self) -> Self:
        """Tells documents apart, each sequence being one where nothing was told apart."""
        return self if self.documents is not None else self._replace(documents=torch.zeros_like(self.tokens))

    def require_below(self, vocab_size: int) -> Self:
        """Itself, if no token and no target is `vocab_size` or more.

        Raises:
            DataError: One is.
        """
        largest = int(max(self.tokens.max(), self.targets.max()))
        if largest >= vocab_size:
            raise DataError(
                f"the data holds token {largest}, and LanguageModel.vocab_size is {vocab_size}: "
                "they were made for another model, or are damaged"
            )
        return self

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the loss of a model takes, by name; what there is none of is left out."""
        optional = {"images": self.images, "documents": self.documents}
        given = {name: tensor for name, tensor in optional.items() if tensor is not None}
        return {"tokens": self.tokens, "targets": self.targets, **given}

    def split(self, size: int) -> list[Self]:
        """The same sequences in batches of at most `size`, each with its images."""
        rows, targets = self.tokens.split(size), self.targets.split(size)
        documents = [None] * len(rows) if self.documents is None else self.documents.split(size)
        counts = [int((piece != IGNORED).sum()) for piece in targets]
        pieces = zip(rows, targets, counts, self._split_images(size), documents, strict=True)
        return [type(self)(*start, *images, last) for *start, images, last in pieces]

    def _split_images(self, size: int) -> list[tuple[Tensor | None, tuple[int, ...]]]:
        counts = [self.images_per_sequence[first : first + size] for first in range(0, len(self.tokens), size)]
        if self.images is None:
            return [(None, piece) for piece in counts]
        return list(zip(self.images.split([sum(piece) for piece in counts]), counts, strict=True))

    def pinned(self) -> Self:
        """In page-locked memory, from which a copy to the GPU does not wait."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> Self:
        """On `device`, without waiting for the copy."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, move: Callable[[Tensor], Tensor]) -> Self:
        images, documents = (None if tensor is None else move(tensor) for tensor in (self.images, self.documents))
        return self._replace(tokens=move(self.tokens), targets=move(self.targets), images=images, documents=documents)


def _interleaved_images(batches: Sequence[Batch], order: Tensor) -> tuple[Tensor | None, tuple[int, ...]]:
    """The images of several batches with their sequences in another order, and how many each sequence has."""
    with_images = [batch.images for batch in batches if batch.images is not None]
    if not with_images:
        return None, ()
    counts = [batch.images_per_sequence or (0,) * len(batch.tokens) for batch in batches]
    flat = [count for part in counts for count in part]
    pieces = torch.cat(with_images).split(flat)
    return torch.cat([pieces[row] for row in order.tolist()]), tuple(flat[row] for row in order.tolist())
