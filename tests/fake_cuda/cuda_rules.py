"""Rules of a step on CUDA, checked on every operation of tensors without values."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cuda_kernels import has_cuda_kernel, is_composite
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

import ml

_PACKAGE = Path(ml.__file__).parent
# Operations whose result has a shape, or whose checks have an outcome, that the host must read.
_READ_BY_THE_HOST = frozenset(
    (
        *("_local_scalar_dense", "equal", "nonzero", "masked_select", "multinomial", "bincount", "histc"),
        *("_unique", "_unique2", "unique_dim", "unique_consecutive", "embedding_renorm_", "segment_reduce"),
        *("linalg_inv_ex", "_linalg_check_errors", "linalg_lstsq"),
    )
)
_INDEXING = frozenset(("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"))
_COPIES = frozenset(("_to_copy", "copy_"))
_UNPINNED = {"pin_memory": False}


class RuleBroken(AssertionError):
    """An operation that fails on CUDA or synchronizes. Its traceback is the stack."""


class CudaRules(TorchDispatchMode):
    """Context in which an operation on CUDA tensors must have a kernel and may not synchronize.

    Tensors of the CPU keep their values. Custom operators of Juniper are looked into.

    Args:
        may_synchronize: Called with the innermost function of Juniper, as `innermost` names it, before a
            synchronization; False refuses it.
    """

    def __init__(self, may_synchronize: Callable[[str], bool]):
        super().__init__()
        self.may_synchronize = may_synchronize
        self.pinned: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # asks for the device of a tensor and such
            return func(*args, **kwargs)
        if kwargs.get("pin_memory") or func is torch.ops.aten._pin_memory.default:
            return self._pin(func, args, kwargs)
        tensors = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)]
        devices = {tensor.device.type for tensor in tensors} | {_type_of(kwargs.get("device"))} - {None}
        if "cuda" not in devices:
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func.namespace == "juniper":
            with self:
                return OPDEFS[func.name()]._init_fn(*args, **kwargs)
        if is_composite(func):  # which autograd takes apart, where it is on
            with self:
                return func.decompose(*args, **kwargs)
        if not has_cuda_kernel(func):
            raise RuleBroken(f"{func} has no CUDA kernel")
        if func._opname in _COPIES and len(devices) > 1:
            return self._copy_between_devices(func, args, kwargs)
        if _is_read_by_host(func, args):
            return self._read(func, args, kwargs)
        return func(*args, **kwargs)

    def _pin(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        """Page-locked memory in name only, which a CPU build cannot allocate."""
        with unset_fake_temporarily():
            found = args[0].clone() if func._opname == "_pin_memory" else func(*args, **kwargs | _UNPINNED)
        self.pinned.append(found)
        return found

    def is_pinned(self, tensor: Tensor | None) -> bool:
        """Returns whether a tensor, or the one that it is a view of, was page-locked."""
        return tensor is not None and any(_memory(tensor) == _memory(one) for one in self.pinned)

    def _copy_between_devices(self, func: Any, args: Any, kwargs: Any) -> Any:
        into, source = (args[0], args[1]) if func._opname == "copy_" else (None, args[0])
        is_asynchronous = kwargs.get("non_blocking") or (into is not None and args[2:3] == (True,))
        on_host = into if source.is_cuda else source
        if not is_asynchronous or not self.is_pinned(on_host):
            self._synchronize(f"{func} between the host and the device")
        if source.is_cuda:  # what the host gets has values, though not those of the device
            with unset_fake_temporarily():
                return torch.ones(source.shape, dtype=kwargs.get("dtype", source.dtype)) if into is None else into
        return func(*args, **kwargs)

    def _read(self, func: Any, args: Any, kwargs: Any) -> Any:
        self._synchronize(f"{func} reads values")
        if func._opname == "_local_scalar_dense":
            return 1.0 if args[0].is_floating_point() else 0
        return func(*args, **kwargs)

    def _synchronize(self, message: str) -> None:
        place = innermost()
        if not self.may_synchronize(place):
            raise RuleBroken(f"{message}, which synchronizes, in {place}")


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _type_of(device: Any) -> str | None:
    return None if device is None else torch.device(device).type


def _is_read_by_host(func: Any, args: Any) -> bool:
    if func._opname in _INDEXING:
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    if func._opname == "repeat_interleave":
        return True  # with the sizes of its result in a tensor
    return func._opname in _READ_BY_THE_HOST


def innermost() -> str:
    """Returns the innermost function of Juniper that is running, such as "training/records.py: Records.of"."""
    frame = sys._getframe()
    while frame is not None and not Path(frame.f_code.co_filename).is_relative_to(_PACKAGE):
        frame = frame.f_back
    if frame is None:
        return "no function of Juniper"
    return f"{Path(frame.f_code.co_filename).relative_to(_PACKAGE).as_posix()}: {frame.f_code.co_qualname}"
