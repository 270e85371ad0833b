"""How much arithmetic a token costs."""

from torch import nn


def flops_per_token(model: nn.Module, sequence_length: int) -> float:
    """Floating-point operations for a token of training, forward and backward, without recomputation.

    6 N + 12 · heads · head_size · keys for each attention layer (PaLM, appendix B), where N counts the entries of the
    weights that a token is multiplied with (lookups, norms and biases are left out; a tied head is in) and `keys` is
    the mean number of keys that a query sees. PaLM sets it to the sequence length T; here it is what the layer needs,
    (T + 1) / 2 for causal attention and less in a window, so utilization is never credited for skipped work.

    A module states its own share, without its children's, in `training_flops_per_token(sequence_length)`. One that a
    token passes only in part, as experts, states in `active_fraction` which part it is; one that works on something
    else than tokens, as an encoder of images, states all of it in `whole_training_flops_per_token(sequence_length)`.
    """
    if hasattr(model, "whole_training_flops_per_token"):
        return model.whole_training_flops_per_token(sequence_length)
    own = getattr(model, "training_flops_per_token", None)
    flops = own(sequence_length) if own is not None else 0.0
    flops += sum(flops_per_token(child, sequence_length) for child in model.children())
    return flops * getattr(model, "active_fraction", 1.0)
