"""The state-space recurrence of Mamba-2: h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_tᵀ and y_t = h_t C_t, for each head.

Shapes: B batch, T time, N heads of P channels, G groups of heads that share B and C, S the state size; a state is a
matrix (P, S). In a chunk, c is the sum of dt A so far, so that a state decays by exp(c_i - c_j) from j to i.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def ssd_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None = None,
    starts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Step by step: x (B, T, N, P), dt (B, T, N), A (N), B, C (B, T, G, S) -> y (B, T, N, P), state (B, N, P, S).

    initial_state: (B, N, P, S), what stands before the first step; None is zero. starts: (B, T), true where a document
    begins, which sees nothing of the state before it.
    """
    heads_per_group = x.shape[2] // B.shape[2]
    B, C = (tensor.repeat_interleave(heads_per_group, dim=2) for tensor in (B, C))  # (B, T, N, S)
    state = dt.new_zeros(len(x), *x.shape[2:], B.shape[-1]) if initial_state is None else initial_state
    starts = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device) if starts is None else starts
    outputs = []
    for x_t, dt_t, B_t, C_t, start_t in zip(*(tensor.unbind(1) for tensor in (x, dt, B, C, starts)), strict=True):
        state = state.where(~start_t[:, None, None, None], 0)
        added = (dt_t[..., None] * x_t)[..., None] * B_t[:, :, None]  # (B, N, P, S)
        state = torch.exp(dt_t * A)[..., None, None] * state + added
        outputs.append((state * C_t[:, :, None]).sum(-1))  # (B, N, P)
    return torch.stack(outputs, dim=1), state


def ssd_chunked(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None = None,
    starts: Tensor | None = None,
    *,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """As `ssd_reference`, by matrix products in chunks of time (Dao and Gu 2024, section 6).

    y_i = Σ_{j<=i} (C_i · B_j) exp(c_i - c_j) dt_j x_j + exp(c_i) h C_i, with h the state that enters the chunk. The
    products are in the dtype of x; decays, and the states that pass from chunk to chunk, in float32 at least.
    """
    length, chunk_size = x.shape[1], min(chunk_size, x.shape[1])
    heads = (B.shape[2], x.shape[2] // B.shape[2])  # groups, and heads in each
    with torch.autocast(x.device.type, enabled=False):
        dt = dt.to(torch.promote_types(x.dtype, torch.float32))
        chunked_starts = None if starts is None else _chunks(starts, chunk_size)
        decays = _decays(_chunks(dt * A, chunk_size).unflatten(-1, heads), chunked_starts)
        x, B, C = (_chunks(tensor.to(x.dtype), chunk_size) for tensor in (x * dt[..., None], B, C))
        x = x.unflatten(3, heads)  # dt x: (B, Z, L, G, K, P)
        B, C = B.transpose(2, 3), C.transpose(2, 3)  # (B, Z, G, L, S)
        entering, state = _passed_on(_left_behind(x, B, decays), decays, initial_state)
        y = _from_within(x, B, C, decays) + _from_before(C, entering.to(x.dtype), decays)
    return y.flatten(1, 2)[:, :length].flatten(2, 3), state


def _chunks(tensor: Tensor, size: int) -> Tensor:
    """(B, T, ...) -> (B, Z, size, ...), with zeros at the end: a step of dt = 0 leaves the state as it is."""
    padding = -tensor.shape[1] % size
    if padding:
        tensor = F.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, padding))
    return tensor.unflatten(1, (-1, size))


class _Decays(NamedTuple):
    """Decays in each chunk for the K heads of G groups, 0 across documents."""

    within: Tensor  # (B, Z, G, K, L, L): at step i of what step j adds; 0 where j > i
    since_start: Tensor  # (B, Z, L, G, K): at step i of the state that enters
    until_end: Tensor  # (B, Z, L, G, K): at the end of what step j adds


def _decays(exponents: Tensor, starts: Tensor | None) -> _Decays:
    """From dt A, (B, Z, L, G, K), and where documents begin, (B, Z, L)."""
    # In float64, and so in the backward pass: the difference of two large sums may be the decay between adjacent steps.
    sums = exponents.double().cumsum(2)
    since_start, until_end = (part.exp().to(exponents.dtype) for part in (sums, sums[:, :, -1:] - sums))
    seen = torch.ones(2 * exponents.shape[2:3], dtype=torch.bool, device=exponents.device).tril()
    if starts is not None:
        document = starts.cumsum(2)  # counted from the start of the chunk
        since_start = since_start.where((document == 0)[..., None, None], 0)
        until_end = until_end.where((document == document[:, :, -1:])[..., None, None], 0)
        seen = (seen & (document[..., :, None] == document[..., None, :]))[:, :, None, None]
    sums = sums.permute(0, 1, 3, 4, 2)
    # Negated before broadcasting, because the backward pass would negate all pairs.
    between = (sums[..., :, None] + (-sums)[..., None, :]).to(exponents.dtype)
    # Masked before the exponential, which could overflow for invisible pairs.
    return _Decays(between.masked_fill(~seen, -torch.inf).exp(), since_start, until_end)


def _from_within(x: Tensor, B: Tensor, C: Tensor, decays: _Decays) -> Tensor:
    """Output of each step from its own chunk: (B, Z, L, G, K, P)."""
    weights = ((C @ B.mT)[:, :, :, None] * decays.within).to(x.dtype)
    return (weights @ x.permute(0, 1, 3, 4, 2, 5)).permute(0, 1, 4, 2, 3, 5)


def _left_behind(x: Tensor, B: Tensor, decays: _Decays) -> Tensor:
    """Update of the state by each chunk, at its end: (B, Z, G, S, K, P)."""
    decayed = (x * decays.until_end[..., None]).to(x.dtype)
    return (B.mT @ decayed.flatten(4).transpose(2, 3)).unflatten(-1, x.shape[-2:])


def _passed_on(left: Tensor, decays: _Decays, initial_state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The state that enters each chunk, (B, Z, G, S, K, P), and the one after the last, (B, N, P, S)."""
    decay = decays.since_start[:, :, -1, :, None, :, None]  # (B, Z, G, 1, K, 1)
    left = left.to(decay.dtype)
    if initial_state is None:
        state = torch.zeros_like(left[:, 0])
    else:
        state = initial_state.to(decay.dtype).unflatten(1, left.shape[2:5:2]).permute(0, 1, 4, 2, 3)
    entering = []
    for left_z, decay_z in zip(left.unbind(1), decay.unbind(1), strict=True):
        entering.append(state)
        state = torch.addcmul(left_z, decay_z, state)
    return torch.stack(entering, dim=1), state.permute(0, 1, 3, 4, 2).flatten(1, 2)


def _from_before(C: Tensor, entering: Tensor, decays: _Decays) -> Tensor:
    """Output of each step from the state that enters its chunk: (B, Z, L, G, K, P), in the dtype of the decays."""
    seen = (C @ entering.flatten(4)).transpose(2, 3).unflatten(-1, entering.shape[-2:])
    return seen * decays.since_start[..., None]
