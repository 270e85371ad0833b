"""Staging of tensors in host memory, so that they can be written while training changes the originals."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class Staging:
    """Reusable host memory for copies of tensors.

    Allocating it for each copy would cost more than the copy: the system maps it page by page, or pins each page.
    """

    def __init__(self) -> None:
        self._copies: dict[str, Tensor] = {}

    @torch.no_grad()
    def copy(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Callable[[], None]]:
        """Copies tensors to the host without synchronizing; GPU copies are queued before the kernels of the next step.

        Args:
            tensors: The tensors to copy, by name; of a shared tensor the part of this process.

        Returns:
            The copies, valid until the next call, and a function that waits until they are complete.
        """
        self._copies = {name: self._like(name, tensor) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            self._copies[name].copy_(tensor, non_blocking=True)
        if not any(tensor.is_cuda for tensor in tensors.values()):
            return self._copies, lambda: None
        event = torch.cuda.Event()
        event.record()
        return self._copies, event.synchronize

    def _like(self, name: str, tensor: Tensor) -> Tensor:
        known = self._copies.get(name)
        if known is not None and (known.shape, known.dtype) == (tensor.shape, tensor.dtype):
            return known
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
