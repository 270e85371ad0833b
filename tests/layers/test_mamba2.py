"""Mamba-2 against the transformers library with its weights, and its chunked form against a loop over time."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from ml.layers import Cache, Context, Linear
from ml.layers.convolution import CausalConvolution
from ml.layers.mixers.mamba2 import Mamba2
from ml.layers.normalization import GatedRMSNorm
from ml.layers.parameter import named_settings
from ml.layers.recurrences.state_space_duality import ssd_chunked, ssd_reference
from ml.models import materialize

EXACT = {"rtol": 1e-9, "atol": 1e-10}  # float64, sums of at most a few hundred terms of order one to a hundred
H = 24
SIZES = {  # of the library; `chunk_size` is its own, ours differs
    "default": {"num_heads": 6},
    "groups": {"num_heads": 6, "n_groups": 3, "chunk_size": 5},
    "a group for each head": {"num_heads": 4, "n_groups": 4, "expand": 1},
    "large heads": {"num_heads": 2, "state_size": 3},
    "biases": {"num_heads": 3, "use_bias": True, "layer_norm_epsilon": 1e-2},
    "no convolution bias": {"num_heads": 3, "use_conv_bias": False, "conv_kernel": 2},
    "limited steps": {"num_heads": 6, "time_step_limit": (0.6, 0.9)},
}
SMALL = {"head_size": 8, "state_size": 5, "num_groups": 2, "chunk_size": 4}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_starts(batch: int, length: int) -> Tensor:
    return random(batch, length, seed=6) > 1.0  # one token in six, so that some are adjacent


def ssd_inputs(batch: int, length: int, heads: int, groups: int) -> list[Tensor]:
    """x, dt, A, B, C and the initial state, heads of 5 channels with 3 numbers each."""
    return [
        random(batch, length, heads, 5),
        F.softplus(2 * random(batch, length, heads, seed=1)),
        -random(heads, seed=2).exp(),
        random(batch, length, groups, 3, seed=3),
        random(batch, length, groups, 3, seed=4),
        random(batch, heads, 5, 3, seed=5),
    ]


def outputs_and_gradients(function, inputs: list[Tensor]) -> dict[str, Tensor]:
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    y, state = function(*inputs)
    torch.autograd.backward((y, state), (random(*y.shape, seed=8), random(*state.shape, seed=9)))
    names = ("x", "dt", "A", "B", "C", "initial_state")
    return {"y": y.detach(), "state": state.detach(), **{n: t.grad for n, t in zip(names, inputs, strict=True)}}


@pytest.mark.parametrize("has_starts", [False, True], ids=["one document", "documents"])
@pytest.mark.parametrize(("heads", "groups"), [(4, 1), (6, 3), (2, 2)])
@pytest.mark.parametrize("chunk_size", [1, 4, 7, 64])
@pytest.mark.parametrize("length", [1, 12, 37])
def test_chunks_equal_the_loop_in_outputs_state_and_gradients(length, chunk_size, heads, groups, has_starts):
    inputs = ssd_inputs(2, length, heads, groups)
    starts = random_starts(2, length) if has_starts else None
    expected = outputs_and_gradients(partial(ssd_reference, starts=starts), inputs)
    fast = partial(ssd_chunked, starts=starts, chunk_size=chunk_size)
    torch.testing.assert_close(outputs_and_gradients(fast, inputs), expected, **EXACT)


def test_both_forms_start_from_zero_where_no_state_is_given():
    x, dt, A, B, C, state = ssd_inputs(2, 9, 4, 2)
    expected = ssd_reference(x, dt, A, B, C, torch.zeros_like(state))
    for form in (partial(ssd_chunked, chunk_size=4), ssd_reference):
        torch.testing.assert_close(form(x, dt, A, B, C), expected, **EXACT)


@pytest.mark.parametrize("has_starts", [False, True], ids=["one document", "documents"])
def test_weak_decays_after_strong_ones_are_exact(has_starts):
    """Steps that forget all, beside steps that forget almost nothing, in one chunk and in float32."""
    x, dt, A, B, C, state = ssd_inputs(1, 64, 2, 1)
    dt = torch.where(random(1, 64, 1, seed=7) > 0.8, 1e4 * dt, 1e-3 * dt)
    starts = random_starts(1, 64) if has_starts else None
    expected = outputs_and_gradients(partial(ssd_reference, starts=starts), [x, dt, A, B, C, state])
    inputs = [tensor.float() for tensor in (x, dt, A, B, C, state)]
    actual = outputs_and_gradients(lambda *i: ssd_chunked(*i, starts=starts), inputs)
    for name, value in actual.items():
        # The sums reach 1e5, where float32 is as coarse as 0.01. The terms themselves are rounded to 1e-7.
        assert (value.double() - expected[name]).norm() <= 1e-6 * expected[name].norm(), name


def test_state_decays_in_float32_under_autocast():
    """A thousand steps of exp(-0.001): in bfloat16 each would round to 1."""
    x, B = torch.zeros(1, 1000, 2, 3, dtype=torch.bfloat16), torch.ones(1, 1000, 1, 4, dtype=torch.bfloat16)
    dt, A, state = torch.full((1, 1000, 2), 1e-3), -torch.ones(2), torch.ones(1, 2, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = ssd_chunked(x, dt, A, B, B, state)
    assert y.dtype == state.dtype == torch.float32
    # A few roundings of 2^-24 in each of 16 chunks.
    torch.testing.assert_close(state, torch.full_like(state, math.exp(-1)), rtol=1e-5, atol=0.0)
    # The state meets C in bfloat16.
    torch.testing.assert_close(y[0, -1], torch.full((2, 3), 4 * math.exp(-1)), rtol=2**-7, atol=0.0)


def disturb(module: torch.nn.Module) -> None:
    """Changes every parameter from its initial value, which could hide a mistake."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)


def library(**changes) -> Mamba2Mixer:
    sizes = {"state_size": 6, "n_groups": 1, "expand": 2, "chunk_size": 8, "time_step_limit": (0.0, math.inf)}
    sizes |= changes
    head_size = sizes["expand"] * H // sizes["num_heads"]
    torch.manual_seed(0)
    oracle = Mamba2Mixer(Mamba2Config(hidden_size=H, head_dim=head_size, num_hidden_layers=1, **sizes), 0)
    disturb(oracle)
    return oracle


def mamba2_tensors(oracle: Mamba2Mixer, gradients: bool) -> dict[str, Tensor]:
    """Returns the weights of the library's mixer, or their gradients, under Juniper's names."""
    size, group_size = oracle.intermediate_size, oracle.n_groups * oracle.ssm_state_size
    sizes = {"gate": size, "x": size, "B": group_size, "C": group_size, "dt": oracle.num_heads}
    tensors = {}
    for name, parameter in oracle.named_parameters():
        tensor = parameter.grad if gradients else parameter.detach()
        if name.startswith("in_proj"):
            kind = name.removeprefix("in_proj.")
            parts = zip(sizes, tensor.split(list(sizes.values())), strict=True)
            tensors |= {f"{part}.{kind}": t for part, t in parts}
        else:
            tensors[name.replace("out_proj", "output").replace("conv1d", "convolution")] = tensor
    return tensors


def ours(oracle: Mamba2Mixer, chunk_size: int) -> Mamba2:
    """Returns Juniper's layer with the weights of `oracle`."""
    weights = mamba2_tensors(oracle, gradients=False)

    def linear(*shape, **options):
        return Linear(*shape, **{**options, "bias": oracle.use_bias})

    layer = Mamba2(
        H,
        num_heads=oracle.num_heads,
        head_size=oracle.head_dim,
        state_size=oracle.ssm_state_size,
        num_groups=oracle.n_groups,
        chunk_size=chunk_size,
        dt_limit=oracle.time_step_limit,
        convolution=partial(CausalConvolution, kernel_size=oracle.conv_kernel_size, bias=oracle.use_conv_bias),
        norm=partial(GatedRMSNorm, epsilon=oracle.layer_norm_epsilon),
        linear=linear,
    )
    materialize(layer).load_state_dict(weights, strict=True)
    return layer


@pytest.mark.parametrize(("shape", "chunk_size"), [((2, 19), 6), ((3, 40), 16), ((2, 5), 64)], ids=str)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_mamba2_has_the_outputs_and_gradients_of_the_library(sizes, shape, chunk_size):
    oracle = library(**sizes)
    layer = ours(oracle, chunk_size)
    results = []
    for forward in (lambda x: oracle(x), lambda x: layer(x, Context())):
        x = random(*shape, H).float().requires_grad_()
        y = forward(x)
        y.backward(random(*shape, H, seed=1).float())
        results.append({"y": y.detach(), "x": x.grad})
    results[0] |= mamba2_tensors(oracle, gradients=True)
    results[1] |= {name: parameter.grad for name, parameter in layer.named_parameters()}
    # float32 in another order: measured against float64, each is off by up to 1.3e-5 of a tensor's largest entry,
    # more where the norm cancels most of a gradient.
    for name, expected in results[0].items():
        atol = 1e-4 * expected.abs().max().item()
        torch.testing.assert_close(results[1].pop(name), expected, rtol=0.0, atol=atol, msg=lambda m, n=name: n + m)
    assert not results[1]


def build(dtype=torch.float64, **options) -> Mamba2:
    layer = materialize(Mamba2(H, **{**SMALL, **options})).to(dtype)
    disturb(layer)
    return layer


@pytest.mark.parametrize("pieces", [[1] * 14, [3, 1, 9, 1]], ids=str)
@pytest.mark.parametrize("has_documents", [False, True])
@torch.no_grad()
def test_decoding_in_pieces_equals_one_pass(pieces, has_documents):
    layer, x = build(), random(2, 14, H)
    documents = random_starts(2, 14).cumsum(1) if has_documents else None
    cache, outputs, start = Cache(), [], 0
    for length in pieces:
        new = slice(start, start + length)
        numbers = documents[:, new] if has_documents else None
        outputs.append(layer(x[:, new], Context(documents=numbers, cache=cache)))
        cache.advance(length, numbers)
        start += length
    torch.testing.assert_close(torch.cat(outputs, dim=1), layer(x, Context(documents=documents)), **EXACT)


def test_packed_documents_equal_separate_ones_in_outputs_and_gradients():
    layer, gradient, lengths = build(), random(2, 14, H, seed=1), [[5, 1, 8], [2, 9, 3]]
    documents = torch.stack([torch.repeat_interleave(torch.tensor([3, 9, 4]), torch.tensor(row)) for row in lengths])

    def alone(x):
        return torch.cat(
            [
                torch.cat([layer(part, Context()) for part in row[None].split(sizes, dim=1)], dim=1)
                for row, sizes in zip(x, lengths, strict=True)
            ]
        )

    results = []
    for forward in (alone, lambda x: layer(x, Context(documents=documents))):
        layer.zero_grad()
        x = random(2, 14, H).requires_grad_()
        y = forward(x)
        y.backward(gradient)
        results.append([y.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())])
    torch.testing.assert_close(results[1], results[0], **EXACT)


def test_time_steps_are_computed_in_float32_under_autocast():
    """The state after a hundred steps of the initial length; a bias in bfloat16 would differ by 2^-9 of 7."""
    layer, cache = materialize(Mamba2(H, head_size=1, state_size=2)), Cache()
    cache.states["mixer 0"] = torch.ones(1, 48, 1, 2)
    nothing = [torch.zeros(1, 100, *shape, dtype=torch.bfloat16) for shape in ((48, 1), (48,), (1, 2), (1, 2))]
    with torch.autocast("cpu", torch.bfloat16):
        layer.scan(*nothing, Context(cache=cache))
    expected = torch.exp(-100 * F.softplus(layer.dt_bias.double()) * layer.A_log.double().exp())
    # Exponents up to a hundred, rounded to 2^-24; beyond, nothing is left.
    state = cache.states["mixer 0"].double()
    torch.testing.assert_close(state, expected[None, :, None, None].expand_as(state), rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize("chunk_size", [3, 8, 64])
def test_chunk_size_changes_nothing(chunk_size):
    x, documents = random(2, 21, H), random_starts(2, 21).cumsum(1)
    context = Context(documents=documents)
    torch.testing.assert_close(build(chunk_size=chunk_size)(x, context), build()(x, context), **EXACT)


def test_mamba2_under_autocast_stays_close_and_keeps_its_state_in_float32():
    layer, x, cache = build(torch.float32), random(2, 100, H).float(), Cache()
    expected = layer(x, Context())
    with torch.autocast("cpu", torch.bfloat16):
        actual = layer(x, Context(cache=cache))
        actual.float().square().sum().backward()
    assert actual.dtype == torch.bfloat16
    assert cache.states["mixer 1"].dtype == torch.float32
    # Inputs, weights and the results of four products round to 2^-9, and dt is exponentiated.
    assert (actual - expected).norm() / expected.norm() < 0.02
    actual = {name: p.grad for name, p in layer.named_parameters()}
    layer.zero_grad()
    expected.square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert (actual[name] - parameter.grad).norm() / parameter.grad.norm() < 0.05, name  # twice as many steps


def test_without_a_norm_only_the_gate_is_applied():
    layer, x = build(norm=None), random(2, 9, H)
    gated = []
    layer.output.register_forward_pre_hook(lambda module, inputs: gated.append(inputs[0]))
    layer(x, Context())
    layer.norm = torch.nn.Module()
    layer.norm.forward = lambda y, gate: y
    layer(x, Context())
    torch.testing.assert_close(gated[0], gated[1] * F.silu(layer.gate(x)), **EXACT)


@pytest.mark.parametrize(
    ("options", "num_heads"),
    [
        ({"head_size": 8}, 6),
        ({"head_size": 8, "intermediate_size": 32}, 4),
        ({"head_size": 8, "num_heads": 5}, 5),
        ({"head_size": 8, "num_heads": 5, "intermediate_size": 40}, 5),
    ],
)
def test_number_of_heads_follows_from_the_sizes(options, num_heads):
    layer = Mamba2(H, **options)
    assert layer.num_heads == num_heads
    assert layer.output.in_features == 8 * num_heads


def test_factors_of_the_projections_are_those_of_scaled_weights():
    scales = {"gate": 0.5, "x": 2.0, "B": 0.25, "C": 4.0, "dt": -1.0}  # powers of two, which round nothing
    options = {"num_heads": 4, "head_size": 3, "state_size": 5, "num_groups": 2}
    scaled, plain = (materialize(Mamba2(12, **options, **more)) for more in ({"projection_scales": scales}, {}))
    plain.load_state_dict(scaled.state_dict())
    with torch.no_grad():
        for name, scale in scales.items():
            for parameter in getattr(plain, name).parameters():
                parameter.mul_(scale)
    x = torch.randn((2, 7, 12), generator=torch.Generator().manual_seed(0))
    assert torch.equal(scaled(x, Context()), plain(x, Context()))


def test_factors_of_some_projections_alone_are_an_error():
    with pytest.raises(ValueError, match="projection_scales must be given for gate, x, B, C, dt"):
        Mamba2(12, num_heads=4, head_size=3, projection_scales={"gate": 2.0})


def test_initial_values_are_those_of_the_paper():
    layer = materialize(Mamba2(1200, head_size=1))
    # The seeds are fixed: a right initialization passes for good.
    decay = layer.A_log.detach().double().exp().numpy()
    assert stats.kstest(decay, stats.uniform(1.0, 15.0).cdf).pvalue > 1e-3
    dt = F.softplus(layer.dt_bias.detach().double()).numpy()
    assert stats.kstest(dt, stats.loguniform(0.001, 0.1).cdf).pvalue > 1e-3
    assert layer.D.eq(1).all()
    assert layer.norm.weight.eq(1).all()
    assert layer.dt.bias is None  # `dt_bias` is the one
    decays = {name: settings.weight_decay for name, _, settings in named_settings(layer) if "." not in name}
    assert decays == {"A_log": 0.0, "D": 0.0, "dt_bias": 0.0}


def test_flops_count_five_operations_an_entry_of_the_states():
    layer = Mamba2(H, head_size=8, num_heads=3, state_size=5)
    assert layer.training_flops_per_token(7) == 3 * 5 * 3 * 8 * 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"head_size must divide intermediate_size \(48\) where num_heads is None, not be 64"),
        ({"head_size": 0}, "head_size must be positive, not 0"),
        ({"num_heads": 0}, "num_heads must be positive, not 0"),
        ({"head_size": 8, "intermediate_size": 0}, "intermediate_size must be positive, not 0"),
        (
            {"head_size": 8, "num_heads": 5, "intermediate_size": 48},
            r"intermediate_size must be num_heads · head_size \(40\) or None, not 48",
        ),
        ({"head_size": 8, "state_size": 0}, "state_size must be positive, not 0"),
        ({"head_size": 8, "num_groups": 4}, "num_groups must divide the 6 heads, not be 4"),
        ({"head_size": 8, "chunk_size": 0}, "chunk_size must be positive, not 0"),
        ({"head_size": 8, "dt_limit": (0.2, 0.1)}, "dt_limit must be a range of numbers from 0"),
        ({"head_size": 8, "dt_limit": (-0.1, 0.1)}, "dt_limit must be a range of numbers from 0"),
        ({"head_size": 8, "lr_scale": -1.0}, "lr_scale must be at least 0"),
    ],
)
def test_invalid_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Mamba2(H, **options)
