"""Tensors that grow along time while decoding."""

from torch import Tensor


class Growing:
    """Tensors that are appended to along one dimension, and of which all, or the newest, are read.

    The memory has room for as much again as it holds. When that is used up, what is still needed moves to a new one of
    twice the size of that: a token costs one copy on average, however long the sequence or the window is.
    """

    def __init__(self, dim: int, kept: int | None = None):
        """`dim` is time. `kept`: how many of the newest entries stay for the next call, None for all."""
        self.dim = dim
        self.kept = kept
        self._start = self._end = 0  # of what is in use
        self._memory: tuple[Tensor, ...] = ()

    def append(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Adds to each tensor what comes next; returns the kept entries followed by the new ones."""
        num_new = tensors[0].shape[self.dim]
        if self.kept is not None:
            self._start = max(self._start, self._end - self.kept)
        if not self._memory or self._end + num_new > self._memory[0].shape[self.dim]:
            self._make_room(tensors, num_new)
        for memory, tensor in zip(self._memory, tensors, strict=True):
            memory.narrow(self.dim, self._end, num_new).copy_(tensor)
        self._end += num_new
        return self._used()

    def _used(self) -> tuple[Tensor, ...]:
        return tuple(memory.narrow(self.dim, self._start, self._end - self._start) for memory in self._memory)

    def _make_room(self, tensors: tuple[Tensor, ...], num_new: int) -> None:
        """Moves the kept entries to the front of a memory with room for `num_new` more, or as many again."""
        used, length = self._used(), self._end - self._start
        size = max(2 * length, length + num_new)
        self._memory = tuple(self._empty(tensor, size) for tensor in tensors)
        for memory, old in zip(self._memory, used, strict=False):  # at first there is nothing
            memory.narrow(self.dim, 0, length).copy_(old)
        self._start, self._end = 0, length

    def _empty(self, tensor: Tensor, size: int) -> Tensor:
        shape = list(tensor.shape)
        shape[self.dim] = size
        return tensor.new_empty(shape)
