"""Policies that select the activations of a block to save and to recompute."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ml.config import configurable, require

MATRIX_PRODUCTS_AND_ATTENTION = (
    "aten.mm",
    "aten.addmm",
    "aten._scaled_mm",
    "aten.bmm",
    "aten._grouped_mm",
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention",
    "juniper.blockwise_attention",
    "juniper.causal_attention",
    "higher_order.flex_attention",
    "torch_attn._varlen_attn",
)


@configurable
class ActivationCheckpointing:
    """Saves only the input of the block and recomputes the whole block in the backward pass (Chen et al. 2016): a third
    more work.
    """

    def __call__(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        """Returns `function(*args)`. Dropout draws the same numbers again."""
        return checkpoint(function, *args, use_reentrant=False)


@configurable
class SelectiveActivationCheckpointing:
    """Saves the results of selected operations and recomputes the others in the backward pass.

    Args:
        saved: Names of the operations whose results are saved; by default matrix products and attention, so that only
            cheap work is repeated.
    """

    def __init__(self, *, saved: tuple[str, ...] = MATRIX_PRODUCTS_AND_ATTENTION):
        unknown = [name for name in set(saved) - set(MATRIX_PRODUCTS_AND_ATTENTION) if not _exists(name)]
        require(not unknown, "saved", f"must name operations of torch, such as 'aten.mm', not {', '.join(unknown)}")
        self.contexts = partial(create_selective_checkpoint_contexts, partial(_policy, frozenset(saved)))

    def __call__(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        """Returns `function(*args)`. Dropout draws the same numbers again."""
        return checkpoint(function, *args, use_reentrant=False, context_fn=self.contexts)


def _exists(name: str) -> bool:
    namespace, _, operation = name.partition(".")
    return bool(operation) and hasattr(getattr(torch.ops, namespace), operation)


def _policy(saved: frozenset[str], context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    is_plain = isinstance(operation, OpOverload)
    name = str(operation.overloadpacket) if is_plain else f"higher_order.{operation.name()}"
    is_saved = name in saved
    return CheckpointPolicy.MUST_SAVE if is_saved else CheckpointPolicy.PREFER_RECOMPUTE
