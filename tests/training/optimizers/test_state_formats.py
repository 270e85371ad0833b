"""Optimizer state in bfloat16 and in 8 bits, against float64 arithmetic on an independent table of codes."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from ml.training import SGD, AdamW, Lion, Muon, RunError
from ml.training.optimizers import BFloat16State, Blockwise8BitState, Float32State, ParameterGroup, state_bytes
from ml.training.optimizers.dynamic_map import DynamicMap

CPU = torch.device("cpu")
BLOCK = 8
FORMATS = {"float32": Float32State, "bfloat16": BFloat16State, "8 bits": partial(Blockwise8BitState, BLOCK)}


def table(is_signed):
    """The dynamic map of Dettmers et al., 2022, as bitsandbytes makes it: an exponent in unary, a linear fraction."""
    positive = [1.0]
    for zeros in range(7):
        bits = 6 - zeros if is_signed else 7 - zeros
        positive += [(0.1 + 0.9 * (fraction + 0.5) / 2**bits) * 10.0**-zeros for fraction in range(2**bits)]
    return np.sort([0.0, *positive, *([-one for one in positive if one != 1.0] if is_signed else [])])


def nearest(values, is_signed):
    """Quantizes rows in blocks and back in float64."""
    blocks = values.reshape(*values.shape[:-1], -1, BLOCK)
    scale = np.abs(blocks).max(-1, keepdims=True)
    relative = blocks / np.where(scale == 0, 1, scale)
    distance = np.abs(relative[..., None] - table(is_signed))
    if not is_signed:
        distance[..., 0] = np.where(blocks > 0, np.inf, 0)
    return (table(is_signed)[distance.argmin(-1)] * scale).reshape(values.shape)


@pytest.mark.parametrize(("dtype", "is_signed"), [(torch.int8, True), (torch.uint8, False)])
def test_the_map_is_that_of_bitsandbytes(dtype, is_signed):
    values = DynamicMap.of(dtype, CPU).values
    assert values.shape == (256,)
    np.testing.assert_allclose(values, table(is_signed), rtol=1e-6)
    assert values[-1] == 1.0
    assert values[0] == pytest.approx(-0.99296875 if is_signed else 0.0)  # of bitsandbytes' `create_dynamic_map`


@pytest.mark.parametrize(("dtype", "is_signed"), [(torch.int8, True), (torch.uint8, False)])
def test_values_are_rounded_to_the_nearest_code_of_their_block(dtype, is_signed):
    random = np.random.default_rng(0)
    values = random.normal(size=(6, 4 * BLOCK)) * 10.0 ** random.uniform(-8, 3, size=(6, 4 * BLOCK))
    values[0, :BLOCK] = 0.0
    values[1, 3] = 0.0
    values = torch.tensor(values if is_signed else np.abs(values)).float()
    codes, scales = torch.zeros(6, 4 * BLOCK, dtype=dtype), torch.zeros(6, 4)
    map_ = DynamicMap.of(dtype, CPU)
    map_.quantize(values, codes, scales)
    found = map_.dequantize(codes, scales)
    # float32 arithmetic; no value is so near to the middle of two codes that it decides.
    np.testing.assert_allclose(found, nearest(values.double().numpy(), is_signed), rtol=1e-6)
    assert (found[0, :BLOCK] == 0.0).all()
    if not is_signed:
        assert ((found > 0.0) == (values > 0.0)).all()  # no second moment vanishes
    again = torch.zeros_like(codes)
    map_.quantize(found, again, scales.clone())
    scaled = codes.unflatten(1, (4, BLOCK)).float().abs().amax(-1) > 0
    assert torch.equal(again.unflatten(1, (4, BLOCK))[scaled], codes.unflatten(1, (4, BLOCK))[scaled])


def weights_of(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        for name, shape in {"a.weight": (6, 32), "b.weight": (6, 32), "c.weight": (3, 12), "d": (16,)}.items()
    }


def created(optimizer, weights):
    return optimizer.create([ParameterGroup(1.0, None, list(weights), list(weights.values()))])


def give_gradients(weights, step):
    generator = torch.Generator().manual_seed(step)
    for weight in weights.values():
        weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)


def test_adamw_in_8_bits_steps_from_quantized_means():
    weights = weights_of()
    optimizer = created(AdamW(0.1, betas=(0.8, 0.9), weight_decay=0.3, state_format=FORMATS["8 bits"]), weights)
    weight, mean, square = weights["a.weight"].detach().double().numpy(), 0.0, 0.0
    for step in range(1, 6):
        give_gradients(weights, step)
        gradient = weights["a.weight"].grad.double().numpy()
        mean, square = 0.8 * mean + 0.2 * gradient, 0.9 * square + 0.1 * gradient**2
        change = mean / (1 - 0.8**step) / (np.sqrt(square / (1 - 0.9**step)) + 1e-8)
        weight = weight - 0.1 * (change + 0.3 * weight)
        mean, square = nearest(mean, True), nearest(square, False)
        optimizer.step()
        np.testing.assert_allclose(weights["a.weight"].detach(), weight, rtol=1e-4, atol=1e-5)  # float32


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("kind", [AdamW, Lion, SGD, Muon])
def test_state_has_its_format_and_a_step_is_near_that_of_float64(kind, format_):
    """Of the first step, whose update precedes the rounding of the state."""
    weights, wide = weights_of(), weights_of(torch.float64)
    for each, optimizer in ((weights, kind(0.1, state_format=FORMATS[format_])), (wide, kind(0.1))):
        algorithm = created(optimizer, each)
        give_gradients(each, 1)
        if each is wide:
            for name, weight in each.items():
                weight.grad = weights[name].grad.double()
        algorithm.step()
        if each is weights:
            state = algorithm.state[weights["a.weight"]]
    dtypes = {value.dtype for key, value in state.items() if key != "step" and not key.endswith("_scale")}
    expected = {"float32": {torch.float32}, "bfloat16": {torch.bfloat16}, "8 bits": {torch.int8, torch.uint8}}
    assert dtypes <= expected[format_]
    for name in weights:
        torch.testing.assert_close(weights[name].double(), wide[name], rtol=1e-5, atol=1e-6)


def test_the_memory_of_8_bits_is_counted_before_the_run():
    weights = weights_of()
    groups = [ParameterGroup(1.0, None, list(weights), list(weights.values()))]
    in_blocks, whole = 2 * 6 * 32, 3 * 12 + 16  # rows of 12 and a vector are no whole number of blocks
    expected = 2 * (in_blocks + 4 * in_blocks // BLOCK + 4 * whole) + 4 * len(weights)
    assert state_bytes(AdamW(state_format=FORMATS["8 bits"]), groups) == expected
    assert state_bytes(AdamW(state_format=BFloat16State), groups) == 2 * 2 * (in_blocks + whole) + 4 * len(weights)


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("kind", [AdamW, Lion, SGD, Muon])
def test_a_skipped_step_changes_no_bit(kind, format_):
    weights = weights_of()
    optimizer = created(kind(0.1, state_format=FORMATS[format_]), weights)
    for step, skip in ((1, 0.0), (2, 1.0)):
        kept = [*weights.values(), *(one for state in optimizer.state.values() for one in state.values())]
        before = [one.detach().clone() for one in kept]
        vars(optimizer)["found_inf"] = torch.tensor(skip)
        give_gradients(weights, step)
        optimizer.step()
        unchanged = [torch.equal(*pair) for pair in zip(kept, before, strict=True)]
        assert all(unchanged) if skip else not any(unchanged[: len(weights)])


def test_a_shard_of_no_whole_number_of_blocks_is_refused_by_name(monkeypatch):
    weights = weights_of()
    part = nn.Parameter(torch.zeros(6, 12))
    monkeypatch.setattr("ml.training.optimizers.state_formats.local", lambda parameter: part)
    message = r"state of a\.weight .*: Blockwise8BitState\.block_size \(8\) does not divide the 12 columns of a shard"
    with pytest.raises(RunError, match=message):
        created(AdamW(state_format=FORMATS["8 bits"]), weights)
