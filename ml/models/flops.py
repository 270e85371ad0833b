"""How much arithmetic a token costs."""

from torch import nn


def flops_per_token(model: nn.Module, sequence_length: int) -> float:
    """Floating-point operations for a token of training, forward and backward, without recomputation.

    6 N + 12 · heads · head_size · keys for each attention layer (PaLM, appendix B), where N counts the entries of the
    weights that a token is multiplied with (lookups, norms and biases are left out; a tied head is in) and `keys` is
    the mean number of keys that a query sees. PaLM sets it to the sequence length T; here it is what the layer needs,
    (T + 1) / 2 for causal attention and less in a window, so utilization is never credited for skipped work.

    A module states its own share, without its children's, in `training_flops_per_token(sequence_length)`.
    """
    return sum(
        module.training_flops_per_token(sequence_length)
        for module in model.modules()
        if hasattr(module, "training_flops_per_token")
    )
