"""Tensors that grow along time while decoding."""

from torch import Tensor


class Growing:
    """Tensors that are appended to along one dimension, and of which all, or the newest, are read.

    The memory doubles when it is full, so that a token costs one copy on average, however long the sequence is.
    """

    def __init__(self, dim: int, kept: int | None = None):
        """`dim` is time. `kept`: how many of the newest entries stay for the next call, None for all."""
        self.dim = dim
        self.kept = kept
        self.length = 0
        self._memory: tuple[Tensor, ...] = ()

    def append(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Adds to each tensor what comes next; returns what was kept with the new behind it."""
        num_new = tensors[0].shape[self.dim]
        self._drop_the_oldest()
        length = self.length + num_new
        if not self._memory or length > self._memory[0].shape[self.dim]:
            self._memory = tuple(self._grown(i, tensor, length) for i, tensor in enumerate(tensors))
        for memory, tensor in zip(self._memory, tensors, strict=True):
            memory.narrow(self.dim, self.length, num_new).copy_(tensor)
        self.length = length
        return tuple(memory.narrow(self.dim, 0, length) for memory in self._memory)

    def _drop_the_oldest(self) -> None:
        """Moves what is kept to the front, once the memory has no room left behind it."""
        if self.kept is None or self.length <= self.kept:
            return
        for memory in self._memory:
            kept = memory.narrow(self.dim, self.length - self.kept, self.kept).clone()
            memory.narrow(self.dim, 0, self.kept).copy_(kept)
        self.length = self.kept

    def _grown(self, index: int, tensor: Tensor, length: int) -> Tensor:
        shape = list(tensor.shape)
        shape[self.dim] = max(2 * self.length, length)
        memory = tensor.new_empty(shape)
        if self.length:
            old = self._memory[index].narrow(self.dim, 0, self.length)
            memory.narrow(self.dim, 0, self.length).copy_(old)
        return memory
