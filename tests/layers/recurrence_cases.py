"""Inputs of recurrences, and libraries of kernels by their documentation, one token after another in plain torch."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F

from ml.layers.recurrences import Rule

B, T, N, D, V = 2, 200, 2, 64, 32
G, P, S = 1, 32, 64  # groups, channels of a head, and states of Mamba-2


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def starts_of_documents():
    starts = torch.zeros(B, T, dtype=torch.bool)
    starts[0, [40, 41, 150]] = True
    starts[1, [0, 77]] = True
    return starts


def delta_rule(*channels):
    """Arguments of the gated delta rule up to the initial state."""
    return [
        F.normalize(random(B, T, N, D, seed=1), dim=-1) * D**-0.5,
        F.normalize(random(B, T, N, D, seed=2), dim=-1),
        random(B, T, N, V, seed=3),
        -F.softplus(random(B, T, N, *channels, seed=4)) / 8,
        random(B, T, N, seed=5).sigmoid(),
        random(B, N, D, V, seed=6),
    ]


def state_space_duality():
    """Arguments of state-space duality up to the initial state."""
    return [
        random(B, T, N, P, seed=1),
        F.softplus(random(B, T, N, seed=2)) / 4,
        -random(N, seed=3).exp() / 4,
        random(B, T, G, S, seed=4) / 4,
        random(B, T, G, S, seed=5) / 4,
        random(B, N, P, S, seed=6),
    ]


def selective_scan():
    """Arguments of the selective scan up to the initial state, which is None."""
    channels, size = 24, 5
    return [
        random(B, T, channels, seed=1),
        F.softplus(random(B, T, channels, seed=2)) / 4,
        -random(channels, size, seed=3).exp(),
        random(B, T, size, seed=4),
        random(B, T, size, seed=5),
        None,
    ]


RULES = {
    "a decay for each head": (Rule.GATED_DELTA_RULE, delta_rule),
    "a decay for each channel": (Rule.GATED_DELTA_RULE, lambda: delta_rule(D)),
    "state-space duality": (Rule.STATE_SPACE_DUALITY, state_space_duality),
    "the selective scan": (Rule.SELECTIVE_SCAN, selective_scan),
}


def computed(kernel, rule, inputs, starts):
    """Returns output, last state and the gradients of the inputs."""
    inputs = [None if one is None else one.detach().clone().requires_grad_() for one in inputs]
    method = getattr(kernel, rule.name.lower())
    chunk_size = () if rule is Rule.SELECTIVE_SCAN else (16,)
    output, state = method(*inputs, starts, *chunk_size)
    loss = (output * random(*output.shape, seed=8).to(output)).sum()
    if rule is not Rule.SELECTIVE_SCAN:
        loss = loss + (state * random(*state.shape, seed=9).to(state)).sum()
    given = [one for one in inputs if one is not None]
    return [output.detach(), state.detach(), *torch.autograd.grad(loss, given)]


def chunk_gated_delta_rule(q, k, v, g, beta, scale, initial_state, output_final_state):
    assert q.shape == k.shape == (B, T, N, D)
    assert q.dtype == k.dtype == v.dtype
    assert g.dtype == initial_state.dtype == torch.float32
    assert output_final_state
    decay, state, outputs = (g if g.dim() == 4 else g[..., None]).exp(), initial_state, []
    for t in range(v.shape[1]):
        state = decay[:, t, :, :, None] * state
        change = beta[:, t, :, None] * (v[:, t] - torch.einsum("bnkv,bnk->bnv", state, k[:, t]))
        state = state + torch.einsum("bnk,bnv->bnkv", k[:, t], change)
        outputs.append(torch.einsum("bnkv,bnk->bnv", state, scale * q[:, t]))
    return torch.stack(outputs, dim=1), state


def chunk_simple_gla(q, k, v, g, scale, initial_state, output_final_state):
    assert q.shape[2] == k.shape[2] == v.shape[2]
    assert q.dtype == k.dtype == v.dtype
    assert g.dtype == initial_state.dtype == torch.float32
    assert output_final_state
    state, outputs = initial_state, []
    for t in range(v.shape[1]):
        state = g[:, t, :, None, None].exp() * state + torch.einsum("bnk,bnv->bnkv", k[:, t], v[:, t])
        outputs.append(torch.einsum("bnkv,bnk->bnv", state, scale * q[:, t]))
    return torch.stack(outputs, dim=1), state


def mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, *, initial_states, seq_idx, return_final_states):
    assert x.dtype == B.dtype == C.dtype
    assert return_final_states
    heads = x.shape[2] // B.shape[2]
    B, C = (part.repeat_interleave(heads, dim=2) for part in (B, C))
    state, previous, outputs = initial_states, torch.zeros(len(x), dtype=torch.int32), []
    for t in range(x.shape[1]):
        if seq_idx is not None:
            state = state.where((seq_idx[:, t] == previous)[:, None, None, None], 0)
            previous = seq_idx[:, t]
        added = torch.einsum("bnp,bns->bnps", dt[:, t, :, None] * x[:, t], B[:, t])
        state = (dt[:, t] * A).exp()[..., None, None] * state + added
        outputs.append(torch.einsum("bnps,bns->bnp", state, C[:, t]))
    return torch.stack(outputs, dim=1), state


def selective_scan_fn(u, delta, A, B, C, return_last_state):
    """u and delta (batch, channels, time), A (channels, states), B and C (batch, states, time), all of one dtype."""
    assert {one.dtype for one in (u, delta, A, B, C)} == {torch.float32}
    assert return_last_state
    state, outputs = u.new_zeros(len(u), *A.shape), []
    for t in range(u.shape[2]):
        decay = torch.einsum("bd,dn->bdn", delta[:, :, t], A).exp()
        state = decay * state + torch.einsum("bd,bn->bdn", (delta * u)[:, :, t], B[:, :, t])
        outputs.append(torch.einsum("bdn,bn->bd", state, C[:, :, t]))
    return torch.stack(outputs, dim=2), state.detach()


LIBRARIES = {
    "fla.ops": SimpleNamespace(
        chunk_gated_delta_rule=chunk_gated_delta_rule,
        chunk_kda=chunk_gated_delta_rule,
        chunk_simple_gla=chunk_simple_gla,
    ),
    "mamba_ssm.ops.triton.ssd_combined": SimpleNamespace(mamba_chunk_scan_combined=mamba_chunk_scan_combined),
    "mamba_ssm.ops.selective_scan_interface": SimpleNamespace(selective_scan_fn=selective_scan_fn),
}
