"""Norms of gradients."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


@torch.no_grad()
def gradient_norms(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Computes the Euclidean norm of each gradient; the norm of this vector is the global gradient norm.

    Args:
        parameters: P parameters.

    Returns:
        (P) norms in the order of `parameters`, at least in float32; 0 without a gradient.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    dtype = torch.promote_types(parameters[0].dtype, torch.float32)
    norms = iter(torch._foreach_norm(gradients, 2, dtype=dtype) if gradients else ())
    absent = torch.zeros((), dtype=dtype, device=parameters[0].device)
    return torch.stack([absent if parameter.grad is None else next(norms) for parameter in parameters])
