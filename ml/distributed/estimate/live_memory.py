"""Bytes of tensors that are alive during a step."""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ml.distributed.estimate.observing import Observer, tensors_in

_GATHERED = "split_with_sizes_copy"  # writes the gathered weights of an FSDP unit


class LiveMemory(Observer):
    """Counts the bytes of the storages that the observed operations create, while they are alive.

    Storages that exist before are not counted. A storage counts once, however many tensors share it. Gathered weights
    of FSDP are counted apart.

    Attributes:
        peak: Highest number of bytes so far.
    """

    def __init__(self, existing: Sequence[Tensor] = ()):
        self.peak = 0
        self._existing = {key for tensor in existing for key in [_key(tensor.untyped_storage())]}
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._gathered: set[int] = set()
        self._bound = 0  # of the bytes alive: the last count and everything created since

    def see(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        is_gathering = operation.overloadpacket.__name__ == _GATHERED
        for tensor in tensors_in((kwargs.get("out"), result)):
            self._add(tensor.untyped_storage(), is_gathering)
        if self._bound > self.peak:
            self._bound = sum(self._count().values())
            self.peak = max(self.peak, self._bound)

    def activations(self) -> int:
        """Returns the bytes alive now, without gathered weights."""
        return sum(size for key, size in self._count().items() if key not in self._gathered)

    def _add(self, storage: torch.UntypedStorage, is_gathered: bool) -> None:
        key = _key(storage)
        if key in self._existing:
            return
        if is_gathered:
            self._gathered.add(key)
            self._bound += storage.nbytes()
        if key not in self._alive:
            self._alive[key] = weakref.ref(storage, lambda _: self._forget(key))
            self._bound += storage.nbytes()

    def _forget(self, key: int) -> None:
        self._alive.pop(key, None)
        self._gathered.discard(key)

    def _count(self) -> dict[int, int]:
        storages = {key: reference() for key, reference in list(self._alive.items())}
        return {key: storage.nbytes() for key, storage in storages.items() if storage is not None}


def _key(storage: torch.UntypedStorage) -> int:
    return storage._cdata
