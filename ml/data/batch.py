"""What one call of the model is given."""

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

    @classmethod
    def of(cls, tokens: np.ndarray, targets: np.ndarray) -> Self:
        """A batch of two (B, T) arrays of whole numbers."""
        return cls(
            torch.from_numpy(tokens.astype(np.int64)),
            torch.from_numpy(targets.astype(np.int64)),
            int(np.count_nonzero(targets != IGNORED)),
        )

    def split(self, size: int) -> list[Self]:
        """The same sequences in batches of at most `size`."""
        pieces = zip(self.tokens.split(size), self.targets.split(size), strict=True)
        return [type(self)(tokens, targets, int((targets != IGNORED).sum())) for tokens, targets in pieces]

    def pinned(self) -> Self:
        """In page-locked memory, from which a copy to the GPU does not wait."""
        return self._replace(tokens=self.tokens.pin_memory(), targets=self.targets.pin_memory())

    def to(self, device: torch.device) -> Self:
        """On `device`, without waiting for the copy."""
        return self._replace(
            tokens=self.tokens.to(device, non_blocking=True), targets=self.targets.to(device, non_blocking=True)
        )
