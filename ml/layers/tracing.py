"""Passes that follow shapes and compute nothing."""

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers to read: not on the meta device, nor in a pass that follows shapes alone."""
    return not tensor.is_meta and not isinstance(tensor, FakeTensor)
