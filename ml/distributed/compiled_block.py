"""A compiled block."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ml.layers.context import Context
from ml.layers.protocol import Mixer


class CompiledBlock:
    """Stands for `forward` of a block: compiles it when it is first called.

    What its mixers share with those of other blocks is computed before, so that no compiled block computes it.

    Args:
        block: The block.
        forward: Its method, or a function of the same effect.
    """

    def __init__(self, block: nn.Module, forward: Callable[..., Tensor]):
        self._forward = torch.compile(forward)
        self._mixers = [module for module in block.modules() if isinstance(module, Mixer)]

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        context = context.of_block()
        for mixer in self._mixers:
            mixer.prepare(context, x.device, dtype)
        return self._forward(x, context)
