"""The causal convolution against torch's, and the mixer against LFM2."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor
from transformers import Lfm2Config
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

from ml.layers import Cache, Context, Linear
from ml.layers.activations import tanh
from ml.layers.convolution import CausalConvolution
from ml.layers.mixers.short_convolution import ShortConvolutionMixer
from ml.layers.parameter import settings_of
from ml.models import materialize

B, T, C = 2, 11, 6
# Both sides add up a handful of terms of order one in float64.
EXACT = {"rtol": 1e-12, "atol": 1e-12}
CASES = {
    "default": {},
    "one tap": {"kernel_size": 1},
    "two taps": {"kernel_size": 2, "bias": False},
    "no activation": {"kernel_size": 3, "activation": None},
    "another activation": {"activation": tanh},
    "longer than the sequence": {"kernel_size": 15},
}
LENGTHS = [[4, 1, 6], [2, 2, 7]]  # of the documents of each row
DOCUMENTS = torch.stack([torch.repeat_interleave(torch.tensor([4, 0, 7]), torch.tensor(row)) for row in LENGTHS])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def build(**options) -> CausalConvolution:
    layer = materialize(CausalConvolution(C, **options)).double()
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(random(*parameter.shape, seed=seed + 1))
    return layer


def library(layer: CausalConvolution, x: Tensor) -> Tensor:
    padded = F.pad(x.transpose(1, 2), (layer.kernel_size - 1, 0))
    y = F.conv1d(padded, layer.weight, layer.bias, groups=C).transpose(1, 2)
    return y if layer.activation is None else layer.activation(y)


def results(layer: torch.nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Returns the output and all gradients."""
    layer.zero_grad()
    (of_input,) = torch.autograd.grad(y, x, random(*y.shape, seed=9), retain_graph=True)
    y.backward(random(*y.shape, seed=9))
    return {"y": y.detach(), "x": of_input, **{name: p.grad.clone() for name, p in layer.named_parameters()}}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_convolution_equals_torch(options):
    layer, x = build(**options), random(B, T, C).requires_grad_()
    torch.testing.assert_close(results(layer, x, layer(x, Context())), results(layer, x, library(layer, x)), **EXACT)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_no_tap_reaches_into_another_document(options):
    layer, x = build(**options), random(B, T, C).requires_grad_()
    alone = [torch.cat([library(layer, part) for part in x[row, None].split(LENGTHS[row], dim=1)], 1) for row in (0, 1)]
    packed = layer(x, Context(documents=DOCUMENTS))
    torch.testing.assert_close(results(layer, x, packed), results(layer, x, torch.cat(alone)), **EXACT)


def test_nan_does_not_leave_its_document():
    x = random(B, T, C)
    x[0, :4] = torch.inf
    y = build()(x, Context(documents=DOCUMENTS))
    assert y[0, 4:].isfinite().all()


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one document", "documents"])
@pytest.mark.parametrize("pieces", [[1] * T, [2, 1, 5, 3], [10, 1]], ids=str)
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_decoding_in_pieces_equals_one_pass(options, pieces, documents):
    layer, x = build(**options), random(B, T, C)
    cache, outputs, start = Cache(), [], 0
    for length in pieces:
        new = slice(start, start + length)
        numbers = None if documents is None else documents[:, new]
        outputs.append(layer(x[:, new], Context(documents=numbers, cache=cache)))
        cache.advance(length, numbers)
        start += length
    torch.testing.assert_close(torch.cat(outputs, dim=1), layer(x, Context(documents=documents)), **EXACT)


def test_the_cache_is_no_longer_than_the_receptive_field():
    layer, cache = build(), Cache()
    layer(random(B, T, C), Context(cache=cache))
    kept = cache.states["mixer 0"]
    assert kept.shape == (B, 3, C)
    assert kept.untyped_storage().nbytes() == kept.nbytes  # not a view of the whole prompt


def test_bfloat16_rounds_no_more_than_its_steps_do():
    layer, x = build().float(), random(B, 200, C).float()
    expected = layer(x, Context())
    with torch.autocast("cpu", torch.bfloat16):
        actual = layer(x.bfloat16(), Context())
    assert actual.dtype == torch.bfloat16
    # Each of inputs, weights, four sums and the activation rounds to 2^-9.
    assert (actual - expected).norm() / expected.norm() < 2 * 2**-8


@pytest.mark.parametrize("kernel_size", [1, 3, 4])
def test_initial_weights_are_those_of_the_librarys_convolution(kernel_size):
    layer = materialize(CausalConvolution(3000, kernel_size=kernel_size))
    bound = kernel_size**-0.5
    weights = layer.weight.detach().flatten().double().numpy()
    assert stats.kstest(weights, stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3  # the seed is fixed
    reference = torch.nn.Conv1d(3000, 3000, kernel_size, groups=3000)
    assert layer.weight.shape == reference.weight.shape
    assert layer.weight.std().item() == pytest.approx(reference.weight.std().item(), rel=0.03)
    assert layer.bias.eq(0).all()


def test_the_bias_does_not_decay():
    layer = CausalConvolution(C)
    assert [settings_of(layer, name).weight_decay for name in ("weight", "bias")] == [None, 0.0]


def test_flops_count_every_tap_three_times():
    assert CausalConvolution(C, kernel_size=5).training_flops_per_token(100) == 3 * 2 * 5 * C


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 0}, "kernel_size must be positive, not 0"),
        ({"lr_scale": -1.0}, "lr_scale must be at least 0"),
    ],
)
def test_invalid_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        CausalConvolution(C, **options)


def lfm2_tensors(oracle: Lfm2ShortConv, gradients: bool) -> dict[str, Tensor]:
    """Returns the weights of the library's mixer, or their gradients, under Juniper's names."""
    tensors = {}
    for name, parameter in oracle.named_parameters():
        tensor = parameter.grad if gradients else parameter.detach()
        if name.startswith("in_proj"):
            kind = name.removeprefix("in_proj.")
            tensors |= {f"{part}.{kind}": t for part, t in zip("BCx", tensor.chunk(3), strict=True)}
        else:
            tensors[name.replace("out_proj", "output").replace("conv.", "convolution.")] = tensor
    return tensors


@pytest.mark.parametrize(("bias", "kernel_size"), [(False, 3), (True, 3), (True, 5)])
def test_mixer_has_the_outputs_and_gradients_of_lfm2(bias, kernel_size):
    config = Lfm2Config(
        hidden_size=12, num_hidden_layers=1, conv_L_cache=kernel_size, conv_bias=bias, layer_types=["conv"]
    )
    oracle = Lfm2ShortConv(config, 0).double()

    def convolution(channels, **options):
        return CausalConvolution(channels, **{**options, "kernel_size": kernel_size, "bias": bias})

    layer = materialize(ShortConvolutionMixer(12, convolution=convolution, linear=partial(Linear, bias=bias))).double()
    layer.load_state_dict(lfm2_tensors(oracle, gradients=False), strict=True)
    x = random(3, 13, 12).requires_grad_()
    expected = oracle(x)
    expected.backward(random(3, 13, 12, seed=9))
    expected_of_input = x.grad
    x.grad = None
    layer(x, Context()).backward(random(3, 13, 12, seed=9))
    torch.testing.assert_close(layer(x, Context()), expected, **EXACT)
    torch.testing.assert_close(x.grad, expected_of_input, **EXACT)
    gradients = {name: p.grad for name, p in layer.named_parameters()}
    torch.testing.assert_close(gradients, lfm2_tensors(oracle, gradients=True), **EXACT)


def test_mixer_has_three_taps_without_bias_and_activation():
    convolution = ShortConvolutionMixer(12).convolution
    assert (convolution.kernel_size, convolution.bias, convolution.activation) == (3, None, None)
