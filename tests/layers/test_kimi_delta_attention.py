"""Kimi delta attention against the transformers library, with its weights."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from transformers import KimiLinearConfig
from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearDeltaAttention

from ml.layers import Context, Linear
from ml.layers.convolution import CausalConvolution
from ml.layers.mixers.kimi_delta_attention import KimiDeltaAttention
from ml.layers.normalization import GatedRMSNorm
from ml.layers.parameter import settings_of
from ml.models import materialize

# Both sides compute in float32 with different summation orders, and the norm amplifies errors of small outputs.
# In float64, the library's gradients differ by up to 4e-5 of the largest entry, Juniper's by 6e-6.
ROUNDING = 1e-4

CASES = {
    "three heads": {},
    "one head": {"linear_num_heads": 1},
    "odd sizes": {"linear_num_heads": 4, "linear_head_dim": 7},
    "short convolution": {"linear_conv_kernel_dim": 2, "rms_norm_eps": 1e-2},
}
NAMES = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "conv1d": "convolution",
    "forget_gate.f_a_proj": "decay_down",
    "forget_gate.f_b_proj": "decay_up",
    "forget_gate.": "",
    "g_a_proj": "gate_down",
    "g_b_proj": "gate_up",
    "b_proj": "beta",  # after names with the same ending
    "o_norm": "norm",
    "o_proj": "output",
}


def kimi(**changes) -> KimiLinearDeltaAttention:
    """Returns the library's layer with random weights, because default values could hide a mistake."""
    sizes = {"linear_num_heads": 3, "linear_head_dim": 6, "linear_conv_kernel_dim": 4, **changes}
    config = KimiLinearConfig(hidden_size=24, **sizes, num_hidden_layers=1, layer_types=["linear_attention"])
    layer = KimiLinearDeltaAttention(config, 0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
        layer.o_norm.weight += 1.0
    return layer


def ours(oracle: KimiLinearDeltaAttention, **options) -> KimiDeltaAttention:
    """Returns Juniper's layer with the weights of `oracle`."""
    layer = KimiDeltaAttention(
        oracle.hidden_size,
        num_heads=oracle.num_heads,
        key_head_size=oracle.head_dim,
        linear=partial(Linear, bias=False),
        convolution=partial(CausalConvolution, kernel_size=oracle.conv_kernel_size),
        norm=partial(GatedRMSNorm, epsilon=oracle.layer_norm_epsilon),
        **options,
    )
    materialize(layer).load_state_dict(renamed({name: x.detach() for name, x in oracle.named_parameters()}))
    return layer


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the library's tensors under Juniper's names; A_log has no dimensions of size one here."""
    result = {}
    for name, tensor in tensors.items():
        for theirs, name_of_ours in NAMES.items():
            name = name.replace(theirs, name_of_ours)
        result[name] = tensor.flatten() if name == "A_log" else tensor
    return result


def assert_same_up_to_rounding(actual: Tensor, expected: Tensor, name: str) -> None:
    error, size = (actual - expected).abs().max().item(), expected.abs().max().item()
    assert actual.shape == expected.shape
    assert error <= ROUNDING * size, f"{name}: off by {error} of {size}"


@pytest.mark.parametrize("shape", [(2, 37), (1, 83), (3, 1)], ids=str)
@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_outputs_and_gradients_are_those_of_kimi_linear(changes, shape):
    oracle = kimi(**changes)
    layer = ours(oracle, chunk_size=16)
    generator = torch.Generator().manual_seed(4)
    x, gradient = (torch.randn(*shape, 24, generator=generator) for _ in range(2))
    x, oracle_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    output, expected = layer(x, Context()), oracle(oracle_x)
    assert_same_up_to_rounding(output, expected, "output")
    output.backward(gradient)
    expected.backward(gradient)
    assert_same_up_to_rounding(x.grad, oracle_x.grad, "x")
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    expected = renamed({name: parameter.grad for name, parameter in oracle.named_parameters()})
    assert gradients.keys() == expected.keys()
    for name, value in gradients.items():
        assert_same_up_to_rounding(value, expected[name], name)


def test_initial_decays_span_the_timescales_of_the_paper():
    """exp(A_log) ~ U(1, 16) for a head and softplus(dt_bias) log-uniform in [0.001, 0.1] for a channel."""
    layer = materialize(KimiDeltaAttention(8, num_heads=2000, key_head_size=1))
    rate, step = layer.A_log.detach().exp(), torch.nn.functional.softplus(layer.dt_bias.detach())
    exponent = step.log10()
    # Means of 2000 draws: the standard deviations, of 15/√12 and 2/√12, over √2000; five times that is never reached.
    assert 1.0 <= rate.min() < 1.1
    assert 15.9 < rate.max() <= 16.0 + 1e-4
    assert rate.mean() == pytest.approx(8.5, abs=5 * 15 / math.sqrt(12 * 2000))
    assert -3.0 - 1e-4 <= exponent.min() < -2.99
    assert -1.01 < exponent.max() <= -1.0 + 1e-4
    assert exponent.mean() == pytest.approx(-2.0, abs=5 * 2 / math.sqrt(12 * 2000))


def test_weight_decay_leaves_the_decays_alone():
    layer = KimiDeltaAttention(24, num_heads=2)
    assert [settings_of(layer, name).weight_decay for name in ("A_log", "dt_bias")] == [0.0, 0.0]


def test_sizes_that_are_left_open_follow_from_the_others():
    layer = KimiDeltaAttention(24, num_heads=3)
    assert (layer.key_head_size, layer.value_head_size) == (8, 8)
    layer = KimiDeltaAttention(24, num_heads=2, key_head_size=5, value_head_size=7, decay_rank=3)
    assert layer.convolution.weight.shape == (2 * (5 + 5 + 7), 1, 4)
    assert (layer.decay_down.weight.shape, layer.decay_up.weight.shape) == ((3, 24), (2 * 5, 3))
    assert (layer.gate_down.weight.shape, layer.gate_up.weight.shape) == ((7, 24), (2 * 7, 7))
    assert (layer.A_log.shape, layer.dt_bias.shape) == ((2,), (2 * 5,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 0}, "num_heads must be positive, not 0"),
        ({"num_heads": 5}, r"num_heads must divide hidden_size \(24\) where key_head_size is None, not 5"),
        ({"num_heads": 2, "key_head_size": 0}, "key_head_size must be positive"),
        ({"num_heads": 2, "value_head_size": -4}, "value_head_size must be positive"),
        ({"num_heads": 2, "decay_rank": 0}, "decay_rank must be positive"),
        ({"num_heads": 2, "gate_rank": 0}, "gate_rank must be positive"),
        ({"num_heads": 2, "chunk_size": 48}, "chunk_size must be a power of two, not 48"),
        ({"num_heads": 2, "lr_scale": -1.0}, "lr_scale must be at least 0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        KimiDeltaAttention(24, **options)


def test_flops_count_the_products_with_the_state():
    layer = KimiDeltaAttention(24, num_heads=4, key_head_size=5, value_head_size=7)
    # For each head: Sᵀ k, k uᵀ and Sᵀ q have 5 · 7 terms of two operations; twice that again backward.
    assert layer.training_flops_per_token(100) == 4 * 3 * (5 * 7) * 2 * 3
