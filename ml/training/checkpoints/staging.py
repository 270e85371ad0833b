"""A copy of tensors on the host, to be written while training changes the originals."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class Staging:
    """Host memory that tensors are copied to, the same each time.

    New memory would cost more than the copy: the system hands it out page by page, or locks each page.
    """

    def __init__(self) -> None:
        self._copies: dict[str, Tensor] = {}

    @torch.no_grad()
    def copy(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Callable[[], None]]:
        """The copies, which hold until the next call, and what waits until they are there.

        The host does not wait for a GPU: its copies are queued before whatever the next step does.
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
