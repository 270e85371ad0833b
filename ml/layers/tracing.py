"""Passes that propagate shapes without computing."""

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def has_values(tensor: Tensor) -> bool:
    """True for a tensor with readable values: neither on the meta device nor in a pass that only propagates shapes."""
    return not tensor.is_meta and not isinstance(tensor, FakeTensor)
