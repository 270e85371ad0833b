"""Native gradients of weights against float64, and the layers that take them."""

import pytest
import torch

from ml.layers import GatedMLP, LanguageModelHead, native, weight_gradient
from ml.models import materialize

needs = pytest.mark.skipif(not native.MULTIPLIES_BFLOAT16, reason="needs a CPU with AMX")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@needs
@pytest.mark.parametrize(
    "sizes", [(64, 32, 32), (0, 64, 96), (1, 64, 96), (300, 288, 544), (513, 544, 1056), (2, 1024, 32)]
)
def test_gradient_of_a_weight_is_that_of_float64(sizes):
    num_tokens, outputs, inputs = sizes
    gradient, x = random(num_tokens, outputs), random(num_tokens, inputs, seed=1)
    found = weight_gradient.weight_gradient(gradient, x)
    assert found.dtype == torch.float32
    expected = gradient.double().t() @ x.double()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)  # sums of products rounded to float32


@needs
def test_threads_change_no_gradient():
    gradient, x = random(100, 512), random(100, 1024, seed=1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = weight_gradient.weight_gradient(gradient, x)
        torch.set_num_threads(3)
        assert torch.equal(weight_gradient.weight_gradient(gradient, x), single)
    finally:
        torch.set_num_threads(before)


def gradients(function, x, weights):
    with torch.autocast("cpu", torch.bfloat16):
        total = function(x).float().square().sum()
    return torch.autograd.grad(total, [x, *weights])


@needs
def test_compiled_layers_have_the_gradients_of_eager_ones(monkeypatch):
    """Up to rounding to bfloat16, with biases and a frozen weight."""
    calls = []
    original = native.library
    monkeypatch.setattr(native, "library", lambda source: calls.append(source) or original(source))
    layer = materialize(GatedMLP(64, intermediate_size=96))
    layer.up.weight.requires_grad_(False)
    x = random(2, 50, 64).float().requires_grad_()
    learned = [weight for weight in layer.parameters() if weight.requires_grad]
    expected = gradients(layer, x, learned)
    assert not calls  # eager
    found = gradients(torch.compile(layer, fullgraph=True, backend="aot_eager"), x, learned)
    assert len(calls) == 2  # gate and down
    for one, other in zip(found, expected, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert (one - other).norm() < 1e-2 * other.norm()


@needs
@pytest.mark.parametrize(("chunk_size", "num_calls"), [(None, 1), (16, 0)])
def test_compiled_heads(chunk_size, num_calls, monkeypatch):
    calls = []
    original = native.library
    monkeypatch.setattr(native, "library", lambda source: calls.append(source) or original(source))
    head = materialize(LanguageModelHead(64, 128, False, loss_chunk_size=chunk_size))
    x, targets = random(1, 48, 64).float().requires_grad_(), torch.arange(48)[None]
    expected = gradients(lambda x: head.loss(x, targets).total, x, [head.weight])
    compiled = torch.compile(head.loss, backend="aot_eager")
    found = gradients(lambda x: compiled(x, targets).total, x, [head.weight])
    assert len(calls) == num_calls
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() < 1e-2 * other.norm()


@needs
def test_gradients_without_a_library_are_those_of_torch(monkeypatch):
    gradient, x = random(40, 64), random(40, 96, seed=1)
    found = weight_gradient.weight_gradient(gradient, x)
    monkeypatch.setattr(native, "library", lambda source: None)
    without = weight_gradient.weight_gradient(gradient, x)
    assert without.dtype == torch.float32
    assert (found - without).norm() < 1e-2 * found.norm()


@pytest.mark.parametrize(
    ("change", "is_native"),
    [
        ({}, True),
        ({"size": 48}, False),
        ({"weight_dtype": torch.bfloat16}, False),
        ({"learned": False}, False),
        ({"autocast": torch.float16}, False),
        ({"tokens": 0}, False),
        ({"has_amx": False}, False),
    ],
)
def test_layers_with_native_gradients(change, is_native, monkeypatch):
    case = {"size": 64, "weight_dtype": torch.float32, "learned": True, "autocast": torch.bfloat16, "tokens": 4}
    case |= {"has_amx": True, **change}
    monkeypatch.setattr(native, "MULTIPLIES_BFLOAT16", case["has_amx"])
    weight = torch.ones(case["size"], 64, dtype=case["weight_dtype"], requires_grad=case["learned"])
    x = torch.ones(case["tokens"], 64)
    assert not weight_gradient.has_native_gradient(x, weight)  # without autocast
    with torch.autocast("cpu", case["autocast"]):
        assert weight_gradient.has_native_gradient(x, weight) == is_native
