"""Storage formats of optimizer state."""

import abc

import torch
from torch import Tensor

from ml.config import configurable
from ml.distributed.shards import local, zeros_of_blocks
from ml.layers.checks import positive

SCALE = "_scale"  # at the end of the key of the scales of quantized state


class StateFormat(abc.ABC):
    """Storage of the running means of an optimizer, which computes in float32."""

    @abc.abstractmethod
    def zeros(self, key: str, parameter: Tensor, *, is_signed: bool) -> dict[str, Tensor]:
        """Creates the stored tensors of one running mean before the first step, by key.

        Args:
            key: Name of the running mean.
            parameter: The parameter, whose shape and sharding the mean has.
            is_signed: Whether the mean can be negative.
        """

    def misfit(self, parameter: Tensor) -> str | None:
        """Returns why the state of a parameter cannot be stored on the mesh, or None if it can."""
        return None


@configurable
class Float32State(StateFormat):
    """Optimizer state in float32, also for weights in bfloat16."""

    def zeros(self, key: str, parameter: Tensor, *, is_signed: bool) -> dict[str, Tensor]:
        return {key: torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False)}


@configurable
class BFloat16State(StateFormat):
    """Optimizer state in bfloat16, rounded to nearest after each step: half the memory of float32.

    A mean whose decay rate is above 0.996 stops moving, because a change below 2^-9 of it is rounded away.
    """

    def zeros(self, key: str, parameter: Tensor, *, is_signed: bool) -> dict[str, Tensor]:
        return {key: torch.zeros_like(parameter, dtype=torch.bfloat16, requires_grad=False)}


@configurable
class Blockwise8BitState(StateFormat):
    """Optimizer state in 8 bits (Dettmers et al., 2022, arXiv:2110.02861): a quarter of the memory of float32.

    Each block of a row has a scale, its largest magnitude, and each value a code of a dynamic map as in bitsandbytes.
    State of vectors, and of weights whose rows are not a whole number of blocks, is in float32.

    Args:
        block_size: Consecutive values with a common scale.
    """

    def __init__(self, block_size: int = 256):
        self.block_size = positive("block_size", block_size)

    def zeros(self, key: str, parameter: Tensor, *, is_signed: bool) -> dict[str, Tensor]:
        if not self._is_quantized(parameter):
            return {key: torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False)}
        dtype = torch.int8 if is_signed else torch.uint8
        codes = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
        return {key: codes, key + SCALE: zeros_of_blocks(parameter, self.block_size)}

    def misfit(self, parameter: Tensor) -> str | None:
        columns = local(parameter).shape[-1] if parameter.ndim else 0
        if not self._is_quantized(parameter) or columns % self.block_size == 0:
            return None
        return (
            f"Blockwise8BitState.block_size ({self.block_size}) does not divide the {columns} columns of a shard: "
            f"set one that does"
        )

    def _is_quantized(self, parameter: Tensor) -> bool:
        return parameter.ndim > 1 and parameter.shape[-1] % self.block_size == 0
