"""Small layers against their formulas in float64."""

import math
from functools import partial

import pytest
import torch
from scipy.special import erf

from ml.layers import (
    MLP,
    Context,
    Embeddings,
    FixedRMSNorm,
    GatedMLP,
    GatedRMSNorm,
    LayerNorm,
    Linear,
    NoNorm,
    Parameter,
    PositionEmbedding,
    RMSNorm,
    constant,
    gelu,
    relu,
    relu_squared,
    silu,
    tanh,
    truncated_normal,
)
from ml.models import materialize


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


ACTIVATIONS = {
    "silu": (silu(), lambda x: x * sigmoid(x)),
    "gelu": (gelu(), lambda x: x * 0.5 * (1 + torch.from_numpy(erf((x / math.sqrt(2)).numpy())))),
    "gelu tanh": (
        gelu(approximate="tanh"),
        lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
    "relu": (relu(), lambda x: x * (x > 0)),
    "relu squared": (relu_squared(), lambda x: x**2 * (x > 0)),
    "tanh": (tanh(), lambda x: 2 * sigmoid(2 * x) - 1),
}


@pytest.mark.parametrize(("activation", "formula"), ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_activations_and_mlps_follow_their_formulas(activation, formula):
    x = random(5, 8).double() * 2
    torch.testing.assert_close(activation(x), formula(x))

    plain = materialize(MLP(8, intermediate_size=11, activation=lambda: activation)).double()
    inner = formula(x @ plain.up.weight.detach().T)
    torch.testing.assert_close(plain(x), inner @ plain.down.weight.T)

    gated = materialize(GatedMLP(8, intermediate_size=11, activation=lambda: activation)).double()
    inner = formula(x @ gated.gate.weight.detach().T) * (x @ gated.up.weight.T)
    torch.testing.assert_close(gated(x), inner @ gated.down.weight.T)


def test_default_intermediate_sizes_hold_the_parameters_of_four_times_the_width():
    assert MLP(96).up.out_features == 384
    assert GatedMLP(384).up.out_features == 1024
    assert GatedMLP(100).up.out_features == 320  # 8/3 · 100 = 266.7, up to a multiple of 64


@pytest.mark.parametrize("bias", [True, False])
def test_linear_has_a_bias_where_asked(bias):
    layer = materialize(Linear(3, 5, bias=bias, bias_initialization=partial(constant, value=2.0)))
    x = random(4, 3)
    expected = x @ layer.weight.T + (2.0 if bias else 0.0)
    torch.testing.assert_close(layer(x), expected)
    assert (layer.bias is not None) == bias


def rms_norm(x, weight, bias, epsilon):
    return weight * x / torch.sqrt(x.square().mean(-1, keepdim=True) + epsilon)


def layer_norm(x, weight, bias, epsilon):
    centered = x - x.mean(-1, keepdim=True)
    return weight * centered / torch.sqrt(centered.square().mean(-1, keepdim=True) + epsilon) + bias


def zero_centered(x, weight, bias, epsilon):
    return rms_norm(x, 1 + weight, bias, epsilon)


def zero_centered_layer_norm(x, weight, bias, epsilon):
    return layer_norm(x, 1 + weight, bias, epsilon)


def fixed(x, bias, epsilon):
    return rms_norm(x, 1.0, bias, epsilon)


def plain_layer_norm(x, bias, epsilon):
    return layer_norm(x, 1.0, 0.0, epsilon)


def in_groups(formula, num_groups):
    def compute(x, weight, bias, epsilon):
        parts = [None if part is None else part.unflatten(-1, (num_groups, -1)) for part in (x, weight, bias)]
        return formula(*parts, epsilon).flatten(-2)

    return compute


NORMS = {
    "RMSNorm": (RMSNorm, rms_norm),
    "zero-centered RMSNorm": (partial(RMSNorm, zero_centered=True), zero_centered),
    "FixedRMSNorm": (FixedRMSNorm, fixed),
    "LayerNorm": (LayerNorm, layer_norm),
    "LayerNorm without weights": (partial(LayerNorm, scale=False, bias=False), plain_layer_norm),
    "zero-centered LayerNorm": (partial(LayerNorm, zero_centered=True), zero_centered_layer_norm),
    "zero-centered LayerNorm in groups": (
        partial(LayerNorm, zero_centered=True, num_groups=4),
        in_groups(zero_centered_layer_norm, 4),
    ),
    "RMSNorm in groups": (partial(RMSNorm, num_groups=3), in_groups(rms_norm, 3)),
    "LayerNorm in groups": (partial(LayerNorm, num_groups=4), in_groups(layer_norm, 4)),
}
# Relative to the float64 formula: float32 within a few roundings of 6e-8, bfloat16 within two of 2^-9.
PRECISIONS = {torch.float32: {"rtol": 1e-5, "atol": 1e-6}, torch.bfloat16: {"rtol": 2**-7, "atol": 2**-7}}


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize(("norm", "formula"), NORMS.values(), ids=NORMS)
def test_norms_and_their_gradients_follow_their_formulas(norm, formula, dtype):
    layer = materialize(norm(48, epsilon=0.01))
    with torch.no_grad():
        for index, parameter in enumerate(layer.parameters()):
            parameter.add_(random(48, seed=index + 1))
    layer.to(dtype)
    x, gradient = random(3, 5, 48, seed=5).to(dtype), random(3, 5, 48, seed=6).to(dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, *layer.parameters())]
    expected = formula(*exact, *([] if len(exact) == 3 else [None]), 0.01)
    expected.backward(gradient.double())

    x.requires_grad_()
    output = layer(x)
    output.backward(gradient)
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), expected, **PRECISIONS[dtype])
    torch.testing.assert_close(x.grad.double(), exact[0].grad, **PRECISIONS[dtype])
    for parameter, reference in zip(layer.parameters(), exact[1:], strict=True):
        error = (parameter.grad.double() - reference.grad).abs().max() / reference.grad.abs().max()
        assert error < PRECISIONS[dtype]["rtol"]


@pytest.mark.parametrize("zero_centered", [False, True])
def test_the_weight_of_a_norm_is_not_rounded_to_bfloat16_before_the_product(zero_centered):
    layer = materialize(RMSNorm(64, zero_centered=zero_centered))
    offsets = torch.linspace(-(2**-8), 2**-8, 64)  # next to 1, bfloat16 has steps of 2^-8 and 2^-7
    with torch.no_grad():
        layer.weight.copy_(offsets if zero_centered else 1 + offsets)
    x = random(200, 64).bfloat16()
    scaled = layer(x).double() / rms_norm(x.double(), 1.0, None, 1e-5)
    torch.testing.assert_close(scaled.mean(0), 1 + offsets.double(), rtol=0, atol=2**-11)  # of 200 rounded to 2^-9


@pytest.mark.parametrize("norm", [RMSNorm, LayerNorm])
def test_a_zero_centered_norm_starts_at_one(norm):
    x = random(3, 16)
    centered, plain = materialize(norm(16, zero_centered=True)), materialize(norm(16))
    assert centered.weight.eq(0).all()
    assert torch.equal(centered(x), plain(x))


@pytest.mark.parametrize("num_groups", [1, 3])
@pytest.mark.parametrize("gate_position", ["before", "after"])
def test_a_gated_norm_follows_its_formula_in_each_group(gate_position, num_groups):
    layer = materialize(
        GatedRMSNorm(12, num_groups=num_groups, gate_position=gate_position, activation=relu, epsilon=0.01)
    ).double()
    with torch.no_grad():
        layer.weight.add_(random(12, seed=3))
    x, gate = random(2, 5, 12, seed=1).double(), random(2, 5, 12, seed=2).double()
    opened = gate * (gate > 0)
    inner = x * opened if gate_position == "before" else x
    groups = [rms_norm(part, 1.0, None, 0.01) for part in inner.chunk(num_groups, dim=-1)]
    expected = torch.cat(groups, dim=-1) * layer.weight * (opened if gate_position == "after" else 1.0)
    # The statistics of float64 inputs are float64, the epsilon included.
    torch.testing.assert_close(layer(x, gate), expected)


def test_embeddings_are_scaled_before_positions_are_added():
    layer = materialize(Embeddings(10, 6, scale=3.0, position=partial(PositionEmbedding, num_positions=8)))
    tokens = torch.tensor([[3, 3, 9]])
    expected = 3.0 * layer.token.weight[tokens] + layer.position.weight[:3]
    torch.testing.assert_close(layer(tokens, Context()), expected)


@pytest.mark.parametrize("norm", [RMSNorm, LayerNorm])
def test_norms_of_large_bfloat16_values_do_not_overflow_or_vanish(norm):
    layer = materialize(norm(64)).bfloat16()
    output = layer(random(2, 64).bfloat16() * 1e15).float()
    assert output.std().item() == pytest.approx(1.0, rel=0.05)


def test_no_norm_returns_its_input():
    x = random(2, 3)
    assert NoNorm(3)(x) is x


def test_embeddings_are_normalized_after_the_sum():
    layer = materialize(Embeddings(7, 4, position=PositionEmbedding, normalization=RMSNorm, scale=2.0))
    tokens = torch.tensor([[1, 6, 1]])
    expected = 2.0 * layer.token.weight[tokens] + layer.position.weight[:3]
    torch.testing.assert_close(layer(tokens, Context()), rms_norm(expected, 1.0, None, 1e-5))


def test_embeddings_add_learned_positions():
    layer = materialize(Embeddings(10, 6, position=partial(PositionEmbedding, num_positions=8)))
    tokens = torch.tensor([[3, 3, 9]])
    expected = layer.token.weight[tokens] + layer.position.weight[:3]
    torch.testing.assert_close(layer(tokens, Context()), expected)
    positions = torch.tensor([[5, 0, 7]])
    expected = layer.token.weight[tokens] + layer.position.weight[positions]
    torch.testing.assert_close(layer(tokens, Context(positions)), expected)


def test_a_sequence_longer_than_the_learned_positions_is_refused():
    layer = materialize(Embeddings(10, 6, position=partial(PositionEmbedding, num_positions=8)))
    with pytest.raises(ValueError, match=r"num_positions \(8\) is below the sequence length 9"):
        layer(torch.zeros(1, 9, dtype=torch.long), Context())


def test_embedding_dropout_acts_in_training_only():
    layer = materialize(Embeddings(10, 64, dropout=0.5))
    tokens = torch.arange(10)[None]
    dropped = layer(tokens, Context()) == 0
    assert 0.4 < dropped.float().mean() < 0.6
    torch.testing.assert_close(layer.eval()(tokens, Context()), layer.token.weight[None])


def test_parameter_carries_its_settings():
    parameter = Parameter((2, 3), initialization=truncated_normal, lr_scale=0.5, weight_decay=0.1)
    settings = parameter.settings
    assert (parameter.shape, settings.lr_scale, settings.weight_decay) == ((2, 3), 0.5, 0.1)
    assert settings.initialization.func is torch.nn.init.trunc_normal_
    assert not Parameter((2,), lr_scale=0.0).requires_grad


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Parameter((2,), lr_scale=-0.5), "lr_scale must be at least 0"),
        (lambda: Parameter((2,), weight_decay=-0.1), "weight_decay must be at least 0"),
        (lambda: Linear(2, 2, lr_scale=-1.0), "lr_scale must be at least 0"),
        (lambda: RMSNorm(2, epsilon=0.0), "epsilon must be positive"),
        (lambda: GatedRMSNorm(4, num_groups=3), "num_groups must divide the size 4, not be 3"),
        (lambda: FixedRMSNorm(4, epsilon=-1.0), "epsilon must be positive"),
        (lambda: Embeddings(2, 2, scale=math.nan), "scale must be finite"),
        (lambda: LayerNorm(2, lr_scale=math.inf), "lr_scale must be at least 0"),
        (lambda: MLP(2, intermediate_size=0), "intermediate_size must be positive"),
        (lambda: GatedMLP(2, lr_scale=-1.0), "lr_scale must be at least 0"),
        (lambda: Embeddings(2, 2, dropout=-0.1), "dropout must be at least 0"),
        (lambda: PositionEmbedding(2, num_positions=0), "num_positions must be positive"),
    ],
)
def test_wrong_options_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
