"""What one call of the model is given."""

from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from ml.layers.loss import IGNORED


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
