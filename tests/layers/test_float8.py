"""Products in float8 against float64 arithmetic on an independent table of float8 values."""

from functools import partial

import numpy as np
import pytest
import torch
from devices import CUDA, relative_error

from ml.distributed.rules.whole import misfits
from ml.layers import MLP, Float8, Linear, LoRA, Projections
from ml.layers.linear_kernels import scaled_product
from ml.models import materialize

SCALINGS = ["tensorwise", "rowwise"]


def finite_values(exponent_bits, mantissa_bits, num_reserved):
    """Positive values of a format: without the largest ones, which are infinity and NaN."""
    bias, steps = 2 ** (exponent_bits - 1) - 1, 2**mantissa_bits
    values = [
        mantissa / steps * 2.0 ** (1 - bias) if exponent == 0 else (1 + mantissa / steps) * 2.0 ** (exponent - bias)
        for exponent in range(2**exponent_bits)
        for mantissa in range(steps)
    ]
    return np.array(values[: len(values) - num_reserved])


TABLES = {"e4m3": finite_values(4, 3, 1), "e5m2": finite_values(5, 2, 4)}


def rounded(x, kind, axis):
    """Rounds in float64 to the nearest value of a scaled table."""
    table = TABLES[kind]
    scale = np.abs(x).max(axis=axis, keepdims=axis is not None) / table[-1]
    index = np.abs(np.abs(x / scale)[..., None] - table).argmin(-1)
    return np.sign(x) * table[index] * scale


def product(left, right, kind, scaling):
    """left @ right of rounded operands."""
    axes = (1, 0) if scaling == "rowwise" else (None, None)
    return rounded(left, kind, axes[0]) @ rounded(right, "e4m3", axes[1])


def random(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * torch.randn((*shape[:-1], 1), generator=generator).exp()


def layer_of(scaling, **options):
    return materialize(Linear(32, 48, kernel=partial(Float8, scaling), **options))


def outputs(layer, x, gradient):
    """The output, and the gradients of input and parameters."""
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(gradient)
    return {"y": y.detach(), "x": x.grad, **{name: p.grad for name, p in layer.named_parameters() if p.requires_grad}}


def test_the_largest_values_are_those_of_torch():
    assert TABLES["e4m3"][-1] == torch.finfo(torch.float8_e4m3fn).max == 448
    assert TABLES["e5m2"][-1] == torch.finfo(torch.float8_e5m2).max == 57344


@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_three_products_are_those_of_rounded_operands(scaling):
    layer, x, gradient = layer_of(scaling), random(3, 7, 32, seed=1), random(3, 7, 48, seed=2)
    found = {name: value.double().numpy() for name, value in outputs(layer, x, gradient).items()}
    weight = layer.weight.detach().double().numpy()
    x, gradient = x.flatten(0, 1).double().numpy(), gradient.flatten(0, 1).double().numpy()
    of_gradient = "e5m2" if scaling == "tensorwise" else "e4m3"
    expected = {
        "y": product(x, weight.T, "e4m3", scaling).reshape(3, 7, 48),
        "x": product(gradient, weight, of_gradient, scaling).reshape(3, 7, 32),
        "weight": product(gradient.T, x, of_gradient, scaling),
        "bias": gradient.sum(0),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Rounded in float32: no operand is so near to the middle of two float8 values that it decides.
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5 * np.abs(value).max(), err_msg=name)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_error_is_within_two_roundings(scaling):
    layer, x = layer_of(scaling, bias=False), random(50, 32, seed=3)
    exact = x.double() @ layer.weight.double().T
    sums = x.double().abs() @ layer.weight.double().abs().T
    error = (layer(x).double() - exact).abs()
    # Half a unit of 3 bits in each operand, and values below the normal range of e4m3, 2^-15 of the largest.
    assert (error <= sums * (2**-4 + 2**-4 + 2**-8) + x.abs().max() * layer.weight.abs().max() * 32 * 2**-14).all()
    assert error.max() > 1e-3 * sums.max()  # and it is no product in float32


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_the_emulation_is_the_scaled_product_of_torch(scaling, dtype):
    left, right = random(32, 64, seed=4), random(48, 64, seed=5).t()
    emulated = scaled_product(left, right, dtype, scaling == "rowwise", True)
    try:
        native = scaled_product(left, right, dtype, scaling == "rowwise", False)
    except RuntimeError as error:
        pytest.skip(f"this CPU has no scaled product: {str(error).splitlines()[0]}")
    tolerance = 2**-8 if scaling == "rowwise" else 1e-5  # a result in bfloat16, or in float32
    torch.testing.assert_close(emulated, native, rtol=tolerance, atol=1e-4)


def test_under_autocast_operands_are_rounded_from_bfloat16():
    layer, x = layer_of("tensorwise"), random(5, 32, seed=6)
    with torch.autocast("cpu", torch.bfloat16):
        found = outputs(layer, x, torch.ones(5, 48, dtype=torch.bfloat16))
    assert found["y"].dtype == torch.bfloat16
    assert found["x"].dtype == found["weight"].dtype == torch.float32
    half = materialize(Linear(32, 48, kernel=Float8)).bfloat16()
    with torch.no_grad():
        half.weight.copy_(layer.weight)
        half.bias.copy_(layer.bias)
    assert torch.equal(half(x.bfloat16()), found["y"])


def test_an_adapter_adds_to_it_and_frozen_weights_have_no_gradient():
    layer = layer_of("tensorwise", apply_peft=LoRA, bias=False)
    layer.weight.requires_grad_(False)
    with torch.no_grad():
        layer.adapter.B.normal_()
    x = random(4, 32, seed=7)
    plain = layer.kernel(x, layer.weight)
    torch.testing.assert_close(layer(x), plain + x @ layer.adapter.A.T @ layer.adapter.B.T * layer.adapter.scale)
    assert outputs(layer, x, torch.ones(4, 48)).keys() == {"y", "x", "adapter.A", "adapter.B"}


def test_zeros_and_an_empty_input_are_products_too():
    layer = layer_of("rowwise", bias=False)
    assert torch.equal(layer(torch.zeros(3, 32)), torch.zeros(3, 48))
    assert layer(torch.zeros(0, 32)).shape == (0, 48)


def test_sizes_that_are_no_multiple_of_16_are_refused():
    with pytest.raises(ValueError, match=r"multiples of 16, not 32 inputs to 40 outputs"):
        Linear(32, 40, kernel=Float8)
    layer = layer_of("tensorwise")
    with pytest.raises(ValueError, match="multiples of 16"):  # a part of it
        layer.kernel(torch.zeros(2, 24), layer.weight[:, :24])


@pytest.mark.parametrize(("num_ranks", "shapes"), [(3, []), (2, ["32 inputs to 24 outputs"])])
def test_shards_of_a_tensor_mesh_are_checked_before_anything_is_built(num_ranks, shapes):
    layer = MLP(32, intermediate_size=48, linear=partial(Linear, kernel=Float8))
    expected = [f"MLP.up: Float8 needs sizes that are multiples of 16, not {shape} of each rank" for shape in shapes]
    found = [problem.removesuffix(" of Mesh.tensor") for _, problem in misfits(layer, num_ranks)]
    assert found == expected


def test_what_multiplies_with_weights_itself_refuses_a_kernel():
    layers = [layer_of("tensorwise"), layer_of("tensorwise")]
    assert len(Projections(layers)(random(2, 32, seed=8))) == 2
    with pytest.raises(ValueError, match="needs layers without a kernel, not with Float8"):
        Projections(layers, fused=True)


def test_a_compiled_layer_has_no_graph_break():
    layer, x = layer_of("tensorwise"), random(16, 32, seed=9)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected, found = (outputs(each, x, torch.ones(16, 48)) for each in (layer, compiled))
    for name in ("y", "x"):
        torch.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize(
    ("scaling", "capability", "is_native"),
    [
        ("tensorwise", (8, 0), False),
        ("tensorwise", (8, 9), True),
        ("rowwise", (8, 9), False),
        ("rowwise", (9, 0), True),
    ],
)
def test_devices_without_float8_products_are_warned_of(monkeypatch, scaling, capability, is_native):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    warning = Float8(scaling).warning(torch.device("cuda"))
    assert (warning is None) is is_native
    assert "cpu has no float8 products: @Float8 is emulated" in Float8(scaling).warning(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_products_of_a_gpu_are_those_of_the_emulation(scaling, dtype, monkeypatch):
    if (warning := Float8(scaling).warning(CUDA)) is not None:
        pytest.skip(warning)
    layer = layer_of(scaling).to(CUDA, dtype)
    x, gradient = (random(3, 30, size, seed=size).to(CUDA, dtype) for size in (32, 48))
    native = outputs(layer, x, gradient)
    layer.zero_grad()
    monkeypatch.setattr(Float8, "_is_native", lambda *_: False)
    emulated = outputs(layer, x, gradient)
    errors = {name: relative_error(value, emulated[name]) for name, value in native.items()}
    # Rowwise products are rounded to bfloat16; all are summed in less than float32 inside of the tensor cores.
    assert max(errors.values()) < (2**-10 if scaling == "tensorwise" and dtype == torch.float32 else 2**-7), errors


@pytest.mark.gpu
@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_layer_on_a_gpu_is_near_its_products_in_bfloat16(scaling):
    layer, x = layer_of(scaling).to(CUDA), random(4, 64, 32, seed=1).to(CUDA)
    gradient = random(4, 64, 48, seed=2).to(CUDA)
    found = []
    for kernel in (layer.kernel, None):
        layer.kernel = kernel
        layer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            found.append(outputs(layer, x, gradient.bfloat16()))
    errors = {name: relative_error(value, found[1][name]) for name, value in found[0].items()}
    # e4m3 rounds by up to 2^-4 and e5m2, that of a gradient, by up to 2^-3; rows of other sizes share a scale.
    assert max(errors.values()) < 0.2, errors
    assert errors["y"] > 1e-3  # it was not in bfloat16
