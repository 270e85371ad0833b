"""The machines that a dry run plans for."""

from collections.abc import Sequence
from typing import Literal

import torch

from ml.config import configurable
from ml.layers.checks import positive, positive_float


@configurable(neutral=True)
class Cluster:
    """Devices and links of the machines that `--dry_run` plans for; has no effect on a run.

    The defaults are those of a DGX H100: eight GPUs that NVLink connects, each with a 400 Gb/s network adapter (NVIDIA
    H100 and DGX H100 data sheets).

    Args:
        peak_flops: Dense FLOPs per second of one device in bfloat16 and float16.
        float32_peak_flops: FLOPs per second of one device in float32; TF32 is not used unless torch is told to.
        memory_bandwidth: Bytes per second between one device and its memory.
        node_bandwidth: Bytes per second that one device sends to the others of its node, in one direction.
        network_bandwidth: Bytes per second that one device sends to other nodes, in one direction.
        devices_per_node: Number of devices in a node.
        device: Type of the devices, "cuda" or "cpu"; decides which of their ways layers take.
    """

    def __init__(
        self,
        *,
        peak_flops: float = 989.5e12,
        float32_peak_flops: float = 66.9e12,
        memory_bandwidth: float = 3.35e12,
        node_bandwidth: float = 450e9,
        network_bandwidth: float = 50e9,
        devices_per_node: int = 8,
        device: Literal["cuda", "cpu"] = "cuda",
    ):
        self.peak_flops = positive_float("peak_flops", peak_flops)
        self.float32_peak_flops = positive_float("float32_peak_flops", float32_peak_flops)
        self.memory_bandwidth = positive_float("memory_bandwidth", memory_bandwidth)
        self.node_bandwidth = positive_float("node_bandwidth", node_bandwidth)
        self.network_bandwidth = positive_float("network_bandwidth", network_bandwidth)
        self.devices_per_node = positive("devices_per_node", devices_per_node)
        self.is_gpu = device == "cuda"

    def peak(self, dtype: torch.dtype) -> float:
        """Returns the FLOPs per second of products of tensors of `dtype`."""
        return self.float32_peak_flops if dtype.itemsize > 2 else self.peak_flops

    def bandwidth(self, ranks: Sequence[int]) -> float:
        """Returns the bytes per second that each of a group of ranks sends in a collective.

        The ranks of a node are neighbors. A collective of ranks in several nodes uses the network adapters of all its
        ranks in a node at once, as far as the links inside of the node keep up.

        Args:
            ranks: Ranks of the group.
        """
        nodes = [rank // self.devices_per_node for rank in ranks]
        if len(set(nodes)) == 1:
            return self.node_bandwidth
        ranks_of_node = min(nodes.count(node) for node in set(nodes))
        return min(self.node_bandwidth, ranks_of_node * self.network_bandwidth)
