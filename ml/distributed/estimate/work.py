"""Time that the operations of a step take at the peak rates of a device."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ml.distributed.estimate.cluster import Cluster
from ml.distributed.estimate.observing import OF_COMMUNICATION, Observer, tensors_in
from ml.distributed.estimate.operation_flops import flops_of

_LOOKUPS = ("embedding", "index_select", "gather", "index")  # read as much as they return, not their whole operand


class Work(Observer):
    """Sums the time of operations, each at the peak rate of a device or at its memory bandwidth, whichever is slower.

    An operation reads its operands from memory once and writes its results once; views and allocations are free.

    Args:
        cluster: The rates of a device.

    Attributes:
        seconds: Time of all operations.
        flops: Floating-point operations of matrix products, convolutions and attention.
    """

    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self.seconds = 0.0
        self.flops = 0.0

    def see(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        name = operation.overloadpacket.__name__
        if operation.namespace in OF_COMMUNICATION or operation.is_view or "empty" in name:
            return
        flops = flops_of(operation, args, kwargs, result)
        operands = tensors_in((args, kwargs))
        written = sum(tensor.nbytes for tensor in tensors_in(result))
        read = written if name in _LOOKUPS else sum(tensor.nbytes for tensor in operands)
        dtype = operands[0].dtype if operands else torch.float32
        self.flops += flops
        self.seconds += max(flops / self.cluster.peak(dtype), (read + written) / self.cluster.memory_bandwidth)
