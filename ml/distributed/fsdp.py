"""Fully sharded data parallelism (FSDP2): weights, gradients and optimizer state divided over the data ranks.

`torch.distributed.fsdp` is imported lazily: it takes half a second, and a single process does not need it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from ml.blocks.sequence import BlockSequence
from ml.config import Neutral, configurable
from ml.layers.experts import Experts

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

_ENTRIES = ("loss", "log_probabilities")  # methods of a model that are called from outside besides `forward`


@configurable(
    neutral={
        "reshard_after_forward": Neutral(rounding=True),
        "offload": Neutral(rounding=True),
        "gather_dtype": None,
        "reduce_dtype": None,
    }
)
class FullyShard:
    """Sharding of weights, gradients and optimizer state (Zhao et al., 2023, as `torch.distributed.fsdp.fully_shard`).

    Each block is gathered before it computes; embeddings and head are gathered together.

    Args:
        reshard_after_forward: Whether to free the gathered weights of a block after its forward pass and to gather them
            again in the backward pass: less memory, half as much communication again.
        gather_dtype: Dtype in which weights are gathered and used; None is their own. `%bfloat16` halves the
            communication of float32 weights; the weights of normalizations are rounded too.
        reduce_dtype: Dtype in which gradients are summed over the ranks; None is that of the gradients.
        offload: Whether weights, gradients and optimizer state stay in host memory and are copied to the GPU for each
            use. The optimizer runs on the CPU then.
    """

    def __init__(
        self,
        *,
        reshard_after_forward: bool = True,
        gather_dtype: torch.dtype | None = None,
        reduce_dtype: torch.dtype | None = None,
        offload: bool = False,
    ):
        self.reshard_after_forward = reshard_after_forward
        self.gather_dtype = gather_dtype
        self.reduce_dtype = reduce_dtype
        self.offload = offload

    def shard(self, root: nn.Module, blocks: Iterable[nn.Module], mesh: DeviceMesh, experts: DeviceMesh | None) -> None:
        """Shards a module, in place: one unit for each block, one for the rest.

        Gradients become sums over the ranks, not means: the loss is divided by the number of targets of all ranks.

        Args:
            root: The model, or a stage of a pipeline; usually on the meta device.
            blocks: Its blocks.
            mesh: (fsdp), or (replicate, fsdp) for replicas of the shards.
            experts: The same for experts that are divided over ranks; None where they are not.
        """
        from torch.distributed.fsdp import register_fsdp_forward_method

        if experts is not None:
            for unit in units(module for module in root.modules() if isinstance(module, Experts)):
                self._shard(unit, experts)
        for unit in units(blocks):
            self._shard(unit, mesh)
        self._shard([root], mesh)
        for name in _ENTRIES:
            if callable(getattr(root, name, None)):
                register_fsdp_forward_method(root, name)
        for module in _sharded(root):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)

    def _shard(self, unit: list[nn.Module], mesh: DeviceMesh) -> None:
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

        precision = MixedPrecisionPolicy(self.gather_dtype, self.reduce_dtype, cast_forward_inputs=False)
        on_gpu = mesh.device_type == "cuda"
        offload = CPUOffloadPolicy(pin_memory=on_gpu) if self.offload else OffloadPolicy()
        fully_shard(
            unit if len(unit) > 1 else unit[0],
            mesh=mesh,
            reshard_after_forward=self.reshard_after_forward,
            mp_policy=precision,
            offload_policy=offload,
        )


def units(modules: Iterable[nn.Module]) -> list[list[nn.Module]]:
    """Returns each module as a unit, except that modules that share weights are one."""
    found: list[list[nn.Module]] = []
    for module in modules:
        weights = set(map(id, module.parameters()))
        sharing = [unit for unit in found if any(id(p) in weights for other in unit for p in other.parameters())]
        merged = [other for unit in sharing for other in unit]
        found = [unit for unit in found if unit not in sharing] + [[*merged, module]]
    return found


def blocks_of(model: nn.Module) -> Iterator[nn.Module]:
    """Yields the innermost blocks of all block sequences."""
    for module in model.modules():
        if isinstance(module, BlockSequence):
            yield from (block for block in module.blocks if not isinstance(block, BlockSequence))


def weights_changed(model: nn.Module) -> None:
    """Tells FSDP that weights were written between two steps; whoever writes them calls it.

    Without it, a unit that is still gathered keeps the old weights.
    """
    for module in _sharded(model):
        module.reshard()


def _sharded(model: nn.Module) -> Iterator[FSDPModule]:
    if not (dist.is_available() and dist.is_initialized()):
        return
    from torch.distributed.fsdp import FSDPModule

    yield from (module for module in model.modules() if isinstance(module, FSDPModule))
