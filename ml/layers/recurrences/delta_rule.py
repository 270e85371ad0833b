"""The gated delta rule by matrix products, one chunk of tokens at a time.

In a chunk that the state S enters, the correction that token i adds to its key's row of the state is

    u_i = β_i (v_i - Sᵀ (k_i e^{p_i}) - Σ_{j<i} a_ij u_j),    a_ij = Σ_d k_id k_jd e^{p_id - p_jd},

with p the sum of the log-decays from the chunk's start. All corrections together are the solution of a triangular
system, linear in S: u = X diag(β) (v - (k e^p) S) with X = (1 + diag(β) a)⁻¹, the UT transform (Yang et al. 2024,
"Parallelizing linear transformers with the delta rule" and "Gated delta networks"; by channels, Kimi Linear,
arXiv:2510.26692). What does not depend on S is computed for all chunks at once.

A difference of sums loses the digits of a weak decay after a strong one, and e^{-p} overflows. Here every exponent is
a sum of the log-decays between two tokens, all of one sign, so that strong decays come out as exact as weak ones.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ml.config import require
from ml.layers.checks import positive
from ml.layers.recurrences.delta_rule_reference import gated_delta_rule_reference


class _Decayed(NamedTuple):
    """Decayed products of n chunks of C tokens in M = B N rows, independent of the state."""

    keys: Tensor  # (n, M, C, C): key i times key j, decayed from j to i; 0 where j >= i
    queries: Tensor  # (n, M, C, C): query i times key j, decayed from j to i; 0 where j > i
    since_start: Tensor  # (n, M, C, 1 or D): decay at i of the state that enters the chunk
    until_end: Tensor  # (n, M, C, 1 or D): decay at the end of the chunk of the update of j


def gated_delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    *,
    initial_state: Tensor | None = None,
    document_starts: Tensor | None = None,
    chunk_size: int = 32,
) -> tuple[Tensor, Tensor]:
    """Computes `gated_delta_rule_reference` in chunks; `chunk_size` is a power of two."""
    if key.shape[1] == 1:
        options = {"initial_state": initial_state, "document_starts": document_starts}
        return gated_delta_rule_reference(query, key, value, log_decay, beta, **options)
    (batch, length, num_heads), wide = beta.shape, torch.promote_types(value.dtype, torch.float32)
    chunk_size = min(chunk_size, 1 << (length - 1).bit_length())
    with torch.autocast(value.device.type, enabled=False):
        tensors = (query, key, value, log_decay, beta)
        queries, keys, values, log_decays, betas = (in_chunks(x.to(wide), chunk_size) for x in tensors)
        decayed_by = _decayed_by_head if log_decay.dim() == 3 else _decayed_by_channel
        decayed = decayed_by(queries, keys, log_decays)
        if document_starts is not None:
            starts = in_chunks(document_starts.unsqueeze(-1).expand(beta.shape), chunk_size)
            decayed = _within_documents(decayed, starts)
        state = None if initial_state is None else initial_state.to(wide).flatten(0, 1)
        outputs, state = _chunk_after_chunk(queries, keys, values, betas, decayed, state)
    outputs = outputs.unflatten(1, (batch, num_heads)).permute(1, 0, 3, 2, 4).flatten(1, 2)  # (B, n C, N, V)
    return outputs[:, :length].to(value.dtype), state.unflatten(0, (batch, num_heads))


def in_chunks(x: Tensor, chunk_size: int) -> Tensor:
    """(B, T, N, ...) to (n, B N, C, ...), padded with zeros: tokens that change nothing."""
    missing = -x.shape[1] % chunk_size
    if missing:
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing))
    x = x.unflatten(1, (-1, chunk_size)).movedim(3, 1).movedim(2, 0)  # (n, B, N, C, ...)
    return x.flatten(1, 2)


def _decayed_by_head(query: Tensor, key: Tensor, log_decay: Tensor) -> _Decayed:
    """One decay for a head, (n, M, C): the products of all pairs, times what fades between the two."""
    size = log_decay.shape[-1]
    between = log_decay.unsqueeze(-1).expand(*log_decay.shape, size).tril(-1).cumsum(-2)  # (n, M, C, C): j+1, ..., i
    fading = between.exp().tril()
    since_start = between[..., :1] + log_decay[..., :1, None]
    until_end = between[..., -1, :, None]
    keys, queries = (key @ key.mT * fading).tril(-1), query @ key.mT * fading
    return _Decayed(keys, queries, since_start.exp(), until_end.exp())


def _decayed_by_channel(query: Tensor, key: Tensor, log_decay: Tensor) -> _Decayed:
    """One decay for each channel, (n, M, C, D), by halves.

    In a block of 2m tokens, those of the second half meet those of the first over the seam between the halves: the key
    fades up to the seam, key and query of the later token from there on, and what is left is a matrix product. The
    pairs within a half are those of the smaller blocks.
    """
    queries = (query * key).sum(-1)[..., None, None]  # blocks of one token: (n, M, C, 1, 1)
    keys = torch.zeros_like(queries)
    since_start, until_end = log_decay, torch.zeros_like(log_decay)  # of the block that the token is in
    while (half := keys.shape[-1]) < key.shape[-2]:
        since_first, since_second = _halves(since_start, half)  # (n, M, C/2m, m, D)
        until_first, until_second = _halves(until_end, half)
        until_seam = (_halves(key, half)[0] * until_first.exp()).mT
        since_seam = since_second.exp()
        keys = _grown(keys, (_halves(key, half)[1] * since_seam) @ until_seam)  # (n, M, C/2m, 2m, 2m)
        queries = _grown(queries, (_halves(query, half)[1] * since_seam) @ until_seam)
        since_start = _joined(since_first, since_second + since_first[..., -1:, :])
        until_end = _joined(until_first + since_second[..., -1:, :], until_second)
    return _Decayed(keys.squeeze(-3), queries.squeeze(-3), since_start.exp(), until_end.exp())


def _halves(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The first and the second half of each block of twice `size` tokens: (..., C, D) to (..., C/2m, m, D) each."""
    return x.unflatten(-2, (-1, 2, size)).unbind(-3)


def _joined(first: Tensor, second: Tensor) -> Tensor:
    """Inverse of `_halves`."""
    return torch.stack((first, second), dim=-3).flatten(-4, -2)


def _grown(blocks: Tensor, across: Tensor) -> Tensor:
    """Pairs of lower triangular blocks (..., m, m) and what lies between the two, as blocks (..., 2m, 2m)."""
    first, second = blocks.unflatten(-3, (-1, 2)).unbind(-3)
    return torch.cat((F.pad(first, (0, first.shape[-1])), torch.cat((across, second), dim=-1)), dim=-2)


def _within_documents(decayed: _Decayed, starts: Tensor) -> _Decayed:
    """`decayed` with 0 between tokens of which a document parts them, given where one starts: (n, M, C)."""
    document = starts.cumsum(-1)  # in the chunk: 0 is the document that enters
    same = document.unsqueeze(-1) == document.unsqueeze(-2)
    goes_on, stays = document == 0, document == document[..., -1:]
    return _Decayed(
        decayed.keys.where(same, 0),
        decayed.queries.where(same, 0),
        decayed.since_start.where(goes_on.unsqueeze(-1), 0),
        decayed.until_end.where(stays.unsqueeze(-1), 0),
    )


def _chunk_after_chunk(
    queries: Tensor, keys: Tensor, values: Tensor, betas: Tensor, decayed: _Decayed, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Carries the state (M, D, V) through the chunks; returns the outputs (n, M, C, V) and the last state."""
    if state is None:
        state = values.new_zeros(keys.shape[1], keys.shape[-1], values.shape[-1])
    system = betas.unsqueeze(-1) * decayed.keys
    identity = torch.eye(system.shape[-1], dtype=system.dtype, device=system.device).expand_as(system)
    inverse = torch.linalg.solve_triangular(system, identity, upper=False, unitriangular=True) * betas.unsqueeze(-2)
    recalling = inverse @ (keys * decayed.since_start)  # (n, M, C, D): subtracted for the state that enters
    corrections = inverse @ values  # (n, M, C, V): of a state of 0
    writing = (keys * decayed.until_end).mT  # (n, M, D, C)
    kept = decayed.since_start[..., -1, :, None]  # (n, M, 1 or D, 1)
    entering, corrected = [], []
    for chunk in zip(*(x.unbind(0) for x in (recalling, corrections, writing, kept)), strict=True):
        chunk_recalling, chunk_corrections, chunk_writing, chunk_kept = chunk
        entering.append(state)
        corrected.append(torch.baddbmm(chunk_corrections, chunk_recalling, state, alpha=-1))
        state = torch.baddbmm(state * chunk_kept, chunk_writing, corrected[-1])
    read = (queries * decayed.since_start) @ torch.stack(entering)
    return read + decayed.queries @ torch.stack(corrected), state


def checked_chunk_size(chunk_size: int) -> int:
    """Requires a power of two. Returns the one below `chunk_size`."""
    chunk_size = positive("chunk_size", chunk_size)
    power = 1 << (chunk_size.bit_length() - 1)
    require(power == chunk_size, "chunk_size", f"must be a power of two, not {chunk_size}")
    return power


def checked_head_size(hidden_size: int, num_heads: int, parameter: str, value: int | None) -> int:
    """The size of a head, `value` of `parameter`, or hidden_size / num_heads where that is None."""
    if value is not None:
        return positive(parameter, value)
    message = f"must divide hidden_size ({hidden_size}) where {parameter} is None, not {num_heads}"
    require(hidden_size % num_heads == 0, "num_heads", message)
    return max(hidden_size // num_heads, 1)


def unit_length(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """x / √(Σ x² + epsilon) over the last dimension, at least float32: queries and keys of the delta rule."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + epsilon)


def log_of_decay(x: Tensor, A_log: Tensor, dt_bias: Tensor) -> Tensor:
    """g = -exp(A_log) · softplus(x + dt_bias), at least float32: below 0 and finite."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return -A_log.to(wide).exp() * F.softplus(x.to(wide) + dt_bias.to(wide))
