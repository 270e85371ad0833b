"""Reference implementation of the gated delta rule, which the tests compare `gated_delta_rule` with."""

import torch
from torch import Tensor


def gated_delta_rule_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    *,
    initial_state: Tensor | None = None,
    document_starts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Memory S that each token decays, corrects at its key, and reads:

    S ← exp(g_t) S,  S ← S + β_t k_t (v_t - Sᵀ k_t)ᵀ,  o_t = Sᵀ q_t

    with one g for a head (Yang et al. 2024, "Gated delta networks") or one for each channel of the key, which is a row
    of S (Kimi Linear, arXiv:2510.26692).

    Args:
        query: (B, T, N, D).
        key: (B, T, N, D). With |k| ≤ 1 and 0 ≤ β ≤ 2 the memory cannot blow up.
        value: (B, T, N, V), where V is the size of a value.
        log_decay: g, at most 0 and finite: (B, T, N) or (B, T, N, D).
        beta: (B, T, N).
        initial_state: S before the first token, (B, N, D, V); None is 0.
        document_starts: (B, T), true where S is 0 before the token. None is nowhere.

    Returns:
        The outputs (B, T, N, V) in the dtype of `value`, and the last S. S is at least float32.
    """
    wide = torch.promote_types(value.dtype, torch.float32)
    query, key, values, beta = query.to(wide), key.to(wide), value.to(wide), beta.to(wide)
    decay = log_decay.to(wide).exp()
    if decay.dim() == 3:
        decay = decay.unsqueeze(-1)  # (B, T, N, 1)
    empty = values.new_zeros(*key[:, 0].shape, value.shape[-1])  # (B, N, D, V)
    state = empty if initial_state is None else initial_state.to(wide)
    outputs = []
    for t in range(key.shape[1]):
        if document_starts is not None:
            state = state.where(~document_starts[:, t, None, None, None], 0)
        state = state * decay[:, t, :, :, None]
        recalled = (state * key[:, t, :, :, None]).sum(2)  # (B, N, V)
        correction = beta[:, t, :, None] * (values[:, t] - recalled)
        state = state + key[:, t, :, :, None] * correction[:, :, None]
        outputs.append((state * query[:, t, :, :, None]).sum(2))
    return torch.stack(outputs, dim=1).to(value.dtype), state
