"""The selective scan of Mamba: h_t = exp(dt_t A) · h_{t-1} + dt_t B_t x_t and y_t = C_t h_t, for each channel.

Shapes: B batch, T time, F channels, N the state of a channel. The states of all times, (B, T, F, N), are N times as
large as what goes in and comes out. They are therefore made a segment of time at a time, and again in the backward
pass, which starts each segment from the state that entered it.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ml.layers.recurrences.linear_recurrence import linear_recurrence_

# Entries of the states of one segment, and of one step of the recurrence. On a CPU a segment fits its cache and a step
# outweighs the call that makes it; an accelerator has more memory and needs more to do at once.
SEGMENT_ENTRIES = {"cpu": 2**19}
STEP_ENTRIES = {"cpu": 2**14}
ACCELERATOR_SEGMENT_ENTRIES = 2**26
ACCELERATOR_STEP_ENTRIES = 2**20


def selective_scan_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None = None,
    starts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Step by step, in the dtype of `dt`: x, dt (B, T, F), A (F, N), B, C (B, T, N) -> y (B, T, F), state (B, F, N).

    initial_state: (B, F, N), what stands before the first step; None is zero. starts: (B, T), true where a document
    begins, which sees nothing of the state before it.
    """
    state = dt.new_zeros(len(x), *A.shape) if initial_state is None else initial_state
    starts = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device) if starts is None else starts
    outputs = []
    for x_t, dt_t, B_t, C_t, start_t in zip(*(tensor.unbind(1) for tensor in (x, dt, B, C, starts)), strict=True):
        state = state.where(~start_t[:, None, None], 0)
        state = torch.exp(dt_t[..., None] * A) * state + (dt_t * x_t)[..., None] * B_t[:, None]  # (B, F, N)
        outputs.append((state * C_t[:, None]).sum(-1))  # (B, F)
    return torch.stack(outputs, dim=1), state


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None = None,
    starts: Tensor | None = None,
    *,
    segment_length: int | None = None,
    num_chunks: int | None = None,
) -> tuple[Tensor, Tensor]:
    """As `selective_scan_reference`, in float32 at least, with memory for the states of one segment.

    segment_length: the time whose states are held at once. num_chunks: the parts of a segment that take their steps
    together. None is what suits the sizes and the device.
    """
    wide = torch.promote_types(dt.dtype, torch.float32)
    length = x.shape[1]
    if segment_length is None or num_chunks is None:
        segment_length, num_chunks = _plan(length, len(x) * A.numel(), x.device.type)
    padding = -length % segment_length
    if padding:  # a step of dt = 0 leaves the state as it is
        x, dt, B, C = (F.pad(tensor, (0, 0, 0, padding)) for tensor in (x, dt, B, C))
        starts = None if starts is None else F.pad(starts, (0, padding))
    if initial_state is None:
        initial_state = dt.new_zeros(len(x), *A.shape, dtype=wide)
    x, dt, A, B, C, initial_state = (tensor.to(wide) for tensor in (x, dt, A, B, C, initial_state))
    y, state, _ = _scan(x, dt, A, B, C, initial_state, starts, segment_length, num_chunks)
    return y[:, :length], state


def _plan(length: int, entries: int, device: str) -> tuple[int, int]:
    """The length of a segment and the chunks in it, for states of so many `entries`."""
    segment_entries = SEGMENT_ENTRIES.get(device, ACCELERATOR_SEGMENT_ENTRIES)
    step_entries = STEP_ENTRIES.get(device, ACCELERATOR_STEP_ENTRIES)
    segment_length = min(max(segment_entries // entries, 1), length)
    num_chunks = min(max(step_entries // entries, 1), math.isqrt(segment_length))
    return -(-segment_length // num_chunks) * num_chunks, num_chunks


@torch.library.custom_op("juniper::selective_scan", mutates_args=())
def _scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor,
    starts: Tensor | None,
    segment_length: int,
    num_chunks: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state, and the state that enters each segment."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    state = initial_state
    entering = state.new_empty(x.shape[1] // segment_length, *state.shape)
    with torch.autocast(x.device.type, enabled=False):
        for index, times in enumerate(_segments(x, segment_length)):
            entering[index] = state
            decay, states = _discretized(x, dt, A, B, starts, times)
            linear_recurrence_(decay, states, state, num_chunks)
            y[:, times] = (C[:, times].transpose(0, 1)[..., None, :] @ states.mT).squeeze(-2).transpose(0, 1)
            state = states[-1]
    return y, state.clone(), entering


@_scan.register_fake
def _(x, dt, A, B, C, initial_state, starts, segment_length, num_chunks):
    entering = initial_state.new_empty(x.shape[1] // segment_length, *initial_state.shape)
    return x.new_empty(x.shape), torch.empty_like(initial_state), entering


@torch.library.custom_op("juniper::selective_scan_backward", mutates_args=())
def _scan_backward(
    y_gradient: Tensor,
    state_gradient: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    entering: Tensor,
    starts: Tensor | None,
    segment_length: int,
    num_chunks: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B, C and the initial state."""
    gradients = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (x, dt, B, C)]
    A_gradient = torch.zeros_like(A)
    carried = state_gradient  # of the last state of a segment
    with torch.autocast(x.device.type, enabled=False):
        for index, times in reversed(list(enumerate(_segments(x, segment_length)))):
            decay, states = _discretized(x, dt, A, B, starts, times)
            linear_recurrence_(decay, states, entering[index], num_chunks)
            of_outputs, C_s = (tensor[:, times].transpose(0, 1) for tensor in (y_gradient, C))  # (S, B, ·)
            # Gradient of a state: g_t = y'_t C_t + decay_{t+1} g_{t+1}
            of_states = of_outputs[..., None] * C_s[..., None, :]
            following = torch.cat((decay[1:], torch.ones_like(decay[:1])))
            linear_recurrence_(following, of_states, carried, num_chunks, reverse=True)
            carried = decay[0] * of_states[0]

            C_part = (of_outputs[..., None, :] @ states).squeeze(-2)
            before = torch.cat((entering[index, None], states[:-1]))
            x_s, dt_s, B_s = (tensor[:, times].transpose(0, 1) for tensor in (x, dt, B))
            *parts, A_part = _of_discretized(x_s, dt_s, B_s, A, decay.mul_(before), of_states)
            A_gradient += A_part
            for gradient, part in zip(gradients, (*parts, C_part), strict=True):
                gradient[:, times] = part.transpose(0, 1)
    x_gradient, dt_gradient, B_gradient, C_gradient = gradients
    return x_gradient, dt_gradient, A_gradient, B_gradient, C_gradient, carried.clone()


def _of_discretized(
    x: Tensor, dt: Tensor, B: Tensor, A: Tensor, decayed: Tensor, of_states: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of x, dt, B and A in a segment, from those of its states and the states before, `decayed`."""
    of_inputs = (B[..., None, :] @ of_states.mT).squeeze(-2)  # of dt x, (S, B, F)
    of_B = ((dt * x)[..., None, :] @ of_states).squeeze(-2)
    of_exponents = decayed.mul_(of_states)  # of dt A, the logarithm of the decay
    of_dt = of_inputs * x + (of_exponents * A).sum(-1)
    return of_inputs * dt, of_dt, of_B, of_exponents.mul_(dt[..., None]).sum((0, 1))


@_scan_backward.register_fake
def _(y_gradient, state_gradient, x, dt, A, B, C, entering, starts, segment_length, num_chunks):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (x, dt, A, B, C, state_gradient))


def _save(ctx, inputs, output):
    x, dt, A, B, C, _, starts, *ctx.options = inputs
    ctx.save_for_backward(x, dt, A, B, C, output[2], starts)


def _backward(ctx, y_gradient, state_gradient, _):
    return *_scan_backward(y_gradient, state_gradient, *ctx.saved_tensors, *ctx.options), None, None, None


_scan.register_autograd(_backward, setup_context=_save)


def _segments(x: Tensor, segment_length: int) -> Iterator[slice]:
    return (slice(start, start + segment_length) for start in range(0, x.shape[1], segment_length))


def _discretized(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, starts: Tensor | None, times: slice
) -> tuple[Tensor, Tensor]:
    """Decay and input of the state at each time of a segment, both (S, B, F, N)."""
    x, dt, B = (tensor[:, times].transpose(0, 1) for tensor in (x, dt, B))
    decay = (dt[..., None] * A).exp_()
    if starts is not None:
        decay.masked_fill_(starts[:, times].transpose(0, 1)[..., None, None], 0.0)
    return decay, (dt * x)[..., None] * B[..., None, :]
