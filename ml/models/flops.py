"""Floating-point operations of a model per token."""

from torch import nn

from ml.layers.protocol import Layer, Workload
from ml.models.declarations import obstacle_to_flops


def flops_per_token(model: nn.Module, sequence_length: int) -> float | None:
    """Floating-point operations for a token of training, forward and backward, without recomputation.

    6 N + 12 · heads · head_size · keys for each attention layer (PaLM, appendix B), where N counts the entries of the
    weights that a token is multiplied with (lookups, norms and biases are omitted; a tied head counts) and `keys` is
    the mean number of keys that a query sees. PaLM sets it to the sequence length T; here it is what the layer needs,
    (T + 1) / 2 for causal attention and less in a window, so utilization is never credited for skipped work.

    Args:
        model: A model, or any of its layers.
        sequence_length: Tokens of a sequence.

    Returns:
        Sum of the layers' declarations; None where one of them declares nothing, see `obstacle_to_flops`.
    """
    return None if obstacle_to_flops(model) else _declared(model, sequence_length)


def _declared(module: nn.Module, sequence_length: int) -> float:
    layer = module if isinstance(module, Layer) else None
    length, per_token = Workload(sequence_length, 1.0) if layer is None else layer.workload(sequence_length)
    flops = 0.0 if layer is None else layer.training_flops_per_token(length) or 0.0
    for name, child in module.named_children():
        fraction = 1.0 if layer is None else layer.fraction_of(name)
        flops += fraction * _declared(child, length)
    return per_token * flops
