"""Mamba against the transformers library with its weights, and its scan against a loop over time."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor
from transformers import JambaConfig, MambaConfig
from transformers.models.jamba.modeling_jamba import JambaMambaMixer
from transformers.models.mamba.modeling_mamba import MambaMixer

import ml
from ml.layers import Cache, Context, Linear, RMSNorm
from ml.layers.convolution import CausalConvolution
from ml.layers.mixers.mamba import Mamba
from ml.layers.mixers.state_space_initialization import log_of_uniform, time_step_bias
from ml.layers.parameter import named_settings
from ml.layers.recurrences.linear_recurrence import linear_recurrence_
from ml.layers.recurrences.selective_scan import _plan, selective_scan, selective_scan_reference
from ml.models import materialize

EXACT = {"rtol": 1e-10, "atol": 1e-11}  # float64, sums of at most a few hundred terms of order one to ten
H = 24
SIZES = {
    "default": {},
    "other sizes": {"state_size": 5, "time_step_rank": 7, "conv_kernel": 2, "intermediate_size": 40},
    "no convolution bias": {"use_conv_bias": False, "state_size": 3},
    "biases": {"use_bias": True, "state_size": 4},
    "one of each": {"state_size": 1, "time_step_rank": 1, "conv_kernel": 1},
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def scan_inputs(batch: int, length: int, channels: int, state_size: int) -> list[Tensor]:
    """Returns x, dt, A, B, C and the initial state; decays from nearly none to nearly all."""
    return [
        random(batch, length, channels),
        F.softplus(2 * random(batch, length, channels, seed=1)),
        -random(channels, state_size, seed=2).exp(),
        random(batch, length, state_size, seed=3),
        random(batch, length, state_size, seed=4),
        random(batch, channels, state_size, seed=5),
    ]


def outputs_and_gradients(function, inputs: list[Tensor]) -> dict[str, Tensor]:
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    y, state = function(*inputs)
    torch.autograd.backward((y, state), (random(*y.shape, seed=8), random(*state.shape, seed=9)))
    names = ("x", "dt", "A", "B", "C", "initial_state")
    return {"y": y.detach(), "state": state.detach(), **{n: t.grad for n, t in zip(names, inputs, strict=True)}}


def random_starts(batch: int, length: int) -> Tensor:
    return random(batch, length, seed=6) > 1.0  # one token in six, so that some are adjacent


@pytest.mark.parametrize("has_starts", [False, True], ids=["one document", "documents"])
@pytest.mark.parametrize("plan", [(4, 1), (6, 3), (64, 8), (None, None)], ids=str)
@pytest.mark.parametrize("length", [1, 12, 37])
def test_scan_equals_the_loop_in_outputs_state_and_gradients(length, plan, has_starts):
    inputs = scan_inputs(2, length, 5, 3)
    starts = random_starts(2, length) if has_starts else None
    fast = partial(selective_scan, starts=starts, segment_length=plan[0], num_chunks=plan[1])
    expected = outputs_and_gradients(partial(selective_scan_reference, starts=starts), inputs)
    torch.testing.assert_close(outputs_and_gradients(fast, inputs), expected, **EXACT)


def test_scan_starts_from_zero_where_no_state_is_given():
    x, dt, A, B, C, _ = scan_inputs(2, 9, 5, 3)
    zero = torch.zeros(2, 5, 3, dtype=torch.float64)
    expected = selective_scan_reference(x, dt, A, B, C, zero)
    for scan in (selective_scan, selective_scan_reference):
        torch.testing.assert_close(scan(x, dt, A, B, C), expected, **EXACT)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("num_chunks", [1, 2, 4, 12])
def test_recurrence_equals_its_sum_of_products(num_chunks, reverse):
    decay, added, initial = random(12, 3), random(12, 3, seed=1), random(3, seed=2)
    states = added.clone()
    linear_recurrence_(decay, states, initial, num_chunks, reverse)
    times = list(range(12))[:: -1 if reverse else 1]
    for place, time in enumerate(times):
        expected = decay[times[: place + 1]].prod(0) * initial
        for earlier in range(place + 1):
            expected = expected + decay[times[earlier + 1 : place + 1]].prod(0) * added[times[earlier]]
        torch.testing.assert_close(states[time], expected, **EXACT)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("entries", [1, 100, 2**14, 2**21, 2**30])
@pytest.mark.parametrize("length", [1, 7, 2048])
def test_segments_are_of_equal_chunks_and_no_longer_than_needed(length, entries, device):
    segment_length, num_chunks = _plan(length, entries, device)
    assert segment_length % num_chunks == 0
    assert segment_length < length + num_chunks


def test_scan_is_an_operator_that_torch_can_trace():
    inputs = [tensor.float().requires_grad_() for tensor in scan_inputs(2, 8, 5, 3)]
    torch.library.opcheck(torch.ops.juniper.selective_scan.default, (*inputs, random_starts(2, 8), 4, 2))


def test_state_decays_in_float32_under_autocast():
    """A thousand steps of exp(-0.001): in bfloat16 each would round to 1."""
    x, B = torch.zeros(1, 1000, 2, dtype=torch.bfloat16), torch.ones(1, 1000, 3, dtype=torch.bfloat16)
    dt, A, state = torch.full((1, 1000, 2), 1e-3), -torch.ones(2, 3), torch.ones(1, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = selective_scan(x, dt, A, B, B, state)
    assert y.dtype == state.dtype == torch.float32
    # A thousand roundings of 2^-24.
    torch.testing.assert_close(state, torch.full_like(state, math.exp(-1)), rtol=1e-4, atol=0.0)
    torch.testing.assert_close(y[0, -1], torch.full((2,), 3 * math.exp(-1)), rtol=1e-4, atol=0.0)


def disturb(module: torch.nn.Module) -> None:
    """Changes every parameter from its initial value, which could hide a mistake."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)


def mamba_tensors(oracle: torch.nn.Module, gradients: bool) -> dict[str, Tensor]:
    """Returns the weights of the library's mixer, or their gradients, under Juniper's names."""
    names = {
        "out_proj": "output",
        "conv1d": "convolution",
        "dt_proj.weight": "dt.weight",
        "dt_proj.bias": "dt_bias",
        "dt_layernorm": "dt_norm",
        "b_layernorm": "B_norm",
        "c_layernorm": "C_norm",
    }
    size = oracle.ssm_state_size
    tensors = {}
    for name, parameter in oracle.named_parameters():
        tensor = parameter.grad if gradients else parameter.detach()
        layer, _, kind = name.rpartition(".")
        if layer == "in_proj":
            tensors |= {f"{part}.{kind}": t for part, t in zip(("x", "gate"), tensor.chunk(2), strict=True)}
        elif layer == "x_proj":
            parts = tensor.split([oracle.time_step_rank, size, size])
            tensors |= {f"{part}.{kind}": t for part, t in zip(("dt_down", "B", "C"), parts, strict=True)}
        else:
            for theirs, ours in names.items():
                name = name.replace(theirs, ours)
            tensors[name] = tensor
    return tensors


def ours(oracle: torch.nn.Module, **options) -> Mamba:
    """Returns Juniper's layer with the weights of `oracle`."""
    weights = mamba_tensors(oracle, gradients=False)
    layer = Mamba(
        oracle.hidden_size,
        intermediate_size=oracle.intermediate_size,
        state_size=oracle.ssm_state_size,
        dt_rank=oracle.time_step_rank,
        convolution=partial(CausalConvolution, kernel_size=oracle.conv_kernel_size, bias="convolution.bias" in weights),
        linear=Linear if "output.bias" in weights else partial(Linear, bias=False),
        **options,
    )
    materialize(layer).load_state_dict(weights, strict=True)
    return layer


def assert_same(layer: Mamba, oracle: torch.nn.Module, shape: tuple[int, int]) -> None:
    results = []
    for forward in (lambda x: oracle(x), lambda x: layer(x, Context())):
        x = random(*shape, H).float().requires_grad_()
        y = forward(x)
        y.backward(random(*shape, H, seed=1).float())
        results.append({"y": y.detach(), "x": x.grad})
    results[0] |= mamba_tensors(oracle, gradients=True)
    results[1] |= {name: parameter.grad for name, parameter in layer.named_parameters()}
    # float32 in another order: errors near 1e-6 of each tensor's largest entry.
    for name, expected in results[0].items():
        atol = 2e-5 * expected.abs().max().item()
        torch.testing.assert_close(results[1].pop(name), expected, rtol=0.0, atol=atol, msg=lambda m, n=name: n + m)
    assert not results[1]


@pytest.mark.parametrize("shape", [(2, 19), (3, 1)], ids=str)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_mamba_has_the_outputs_and_gradients_of_the_library(sizes, shape):
    config = MambaConfig(hidden_size=H, num_hidden_layers=1, **{k: v for k, v in sizes.items() if "inter" not in k})
    config.intermediate_size = sizes.get("intermediate_size", config.intermediate_size)
    torch.manual_seed(0)
    oracle = MambaMixer(config, 0)
    disturb(oracle)
    assert_same(ours(oracle), oracle, shape)


def test_norms_of_what_is_selected_are_those_of_jamba():
    torch.manual_seed(0)
    oracle = JambaMambaMixer(JambaConfig(hidden_size=H, mamba_d_state=6, mamba_dt_rank=4, use_mamba_kernels=False), 0)
    disturb(oracle)
    norm = partial(RMSNorm, epsilon=1e-6)
    assert_same(ours(oracle, dt_norm=norm, B_norm=norm, C_norm=norm), oracle, (2, 11))


def build(dtype=torch.float64, **options) -> Mamba:
    layer = materialize(Mamba(H, **options)).to(dtype)
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
    """The state after a thousand steps of the initial length; a bias in bfloat16 would differ by 2^-9 of 7."""
    layer, cache = materialize(Mamba(H)), Cache()
    cache.states["mixer 0"] = torch.ones(1, 48, 16)
    with torch.autocast("cpu", torch.bfloat16):
        layer.scan(torch.zeros(1, 1000, 48, dtype=torch.bfloat16), Context(cache=cache))
    dt = F.softplus(layer.dt_bias.double())[:, None]
    expected = torch.exp(-1000 * dt * torch.arange(1.0, 17.0))[None]
    # A thousand roundings of 2^-24, and of exponents up to a hundred; beyond, nothing is left.
    torch.testing.assert_close(cache.states["mixer 0"].double(), expected, rtol=1e-3, atol=1e-30)


def test_mamba_under_autocast_stays_close_and_keeps_its_state_in_float32():
    layer, x, cache = build(torch.float32, state_size=8), random(2, 100, H).float(), Cache()
    expected = layer(x, Context())
    with torch.autocast("cpu", torch.bfloat16):
        actual = layer(x, Context(cache=cache))
        actual.float().square().sum().backward()
    assert actual.dtype == torch.bfloat16
    assert cache.states["mixer 1"].dtype == torch.float32
    # Inputs, weights and each of five projections round to 2^-9, and dt is exponentiated.
    assert (actual - expected).norm() / expected.norm() < 0.02
    actual = {name: p.grad for name, p in layer.named_parameters()}
    layer.zero_grad()
    expected.square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert (actual[name] - parameter.grad).norm() / parameter.grad.norm() < 0.05, name  # twice as many steps


def test_initial_values_are_those_of_the_paper():
    layer = materialize(Mamba(400, state_size=6))
    torch.testing.assert_close(layer.A_log.exp(), torch.arange(1.0, 7.0).expand(800, 6))
    assert layer.D.eq(1).all()
    # The seeds are fixed: a right initialization passes for good.
    dt = F.softplus(layer.dt_bias.detach().double()).numpy()
    assert stats.kstest(dt, stats.loguniform(0.001, 0.1).cdf).pvalue > 1e-3
    bound = layer.dt_rank**-0.5
    weight = layer.dt.weight.detach().double().flatten().numpy()
    assert stats.kstest(weight, stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3
    assert layer.dt_rank == 25  # 400 / 16


def filled(initialization, shape=(40, 300), **options) -> Tensor:
    tensor = torch.empty(shape)
    initialization(**options)(tensor, generator=torch.Generator().manual_seed(0))
    return tensor.double()


@pytest.mark.parametrize(
    ("values", "distribution"),
    [
        (lambda: F.softplus(filled(time_step_bias, dt_min=0.5, dt_max=40.0)), stats.loguniform(0.5, 40.0)),
        (lambda: filled(log_of_uniform).exp(), stats.uniform(1.0, 15.0)),
        (lambda: filled(log_of_uniform, low=0.1, high=0.3).exp(), stats.uniform(0.1, 0.2)),
    ],
)
def test_initializations_follow_their_distribution(values, distribution):
    assert stats.kstest(values().flatten().numpy(), distribution.cdf).pvalue > 1e-3


def test_no_step_starts_below_the_floor():
    dt = F.softplus(filled(time_step_bias, dt_min=1e-6, dt_max=0.1, dt_floor=1e-2))
    assert dt.min().item() == pytest.approx(1e-2, rel=1e-5)
    assert (dt < 1.0001e-2).double().mean() == pytest.approx(math.log(1e4) / math.log(1e5), abs=0.02)


def test_configuration_changes_initial_values_and_what_decays():
    settings = [
        "LanguageModel.vocab_size = 256",
        "LanguageModel.hidden_size = 32",
        "Repeat.num_blocks = 1",
        "DecoderBlock.mixer = @Mamba",
        "Linear.bias = False",
        "A_log/Parameter.initialization = @log_of_uniform",
        "log_of_uniform.high = 2.0",
        "D/Parameter.weight_decay = 0.5",
    ]
    mixer = ml.build(ml.load(bindings=settings), device="cpu").decoder.block_0.mixer
    assert 0.0 <= mixer.A_log.min() < mixer.A_log.max() <= math.log(2.0)
    decay = {name: settings.weight_decay for name, _, settings in named_settings(mixer)}
    assert decay.pop("D") == 0.5
    assert {name for name, value in decay.items() if value == 0.0} == {"A_log", "dt_bias", "convolution.bias"}


def test_flops_count_six_operations_an_entry_of_the_state():
    assert Mamba(H, intermediate_size=10, state_size=3).training_flops_per_token(7) == 3 * 6 * 10 * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"intermediate_size": 0}, "intermediate_size must be positive, not 0"),
        ({"state_size": 0}, "state_size must be positive, not 0"),
        ({"dt_rank": -1}, "dt_rank must be positive, not -1"),
        ({"lr_scale": -1.0}, "lr_scale must be at least 0"),
        ({"convolution": partial(CausalConvolution, kernel_size=0)}, "kernel_size must be positive"),
    ],
)
def test_invalid_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Mamba(H, **options)


@pytest.mark.parametrize(
    ("initialization", "options", "message"),
    [
        (time_step_bias, {"dt_min": 0.2}, r"dt_min must not be above dt_max \(0.1\), and is 0.2"),
        (time_step_bias, {"dt_floor": 0.0}, "dt_floor must be positive"),
        (log_of_uniform, {"low": 0.0}, "low must be positive"),
        (log_of_uniform, {"low": 20.0}, r"low must not be above high \(16.0\)"),
    ],
)
def test_initializations_that_cannot_be_are_named(initialization, options, message):
    with pytest.raises(ValueError, match=message):
        initialization(**options)
