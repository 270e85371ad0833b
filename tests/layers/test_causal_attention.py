"""Native causal attention and its gradients against float64, and where they are used."""

import ctypes.util
import os

import pytest
import torch
import torch.nn.functional as F

from ml.blocks.activation_checkpointing import SelectiveActivationCheckpointing
from ml.layers import Attention, Context, DotProductAttention, native
from ml.layers.attention_kernels import AttentionTask, causal_attention
from ml.layers.native import compiling
from ml.models import materialize

DTYPES = {torch.float32: native.MULTIPLIES_FLOAT32, torch.bfloat16: native.MULTIPLIES_BFLOAT16}
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 8e-3}  # of scores up to 100, and of weights
SHAPES = [(2, 4, 2, 128, 64), (1, 3, 1, 200, 32), (1, 2, 2, 333, 96), (2, 2, 1, 130, 128), (1, 1, 1, 512, 64)]
TASK = AttentionTask(
    64, 64, is_grouped=True, num_queries=256, num_keys=256, has_documents=False, device="cpu", dtype=torch.float32
)._replace(needs_gradient=True)

needs = pytest.mark.skipif(not native.MULTIPLIES_FLOAT32, reason="needs a CPU with AVX-512")


def supported(dtype: torch.dtype) -> None:
    if not DTYPES[dtype]:
        pytest.skip(f"needs a CPU that multiplies natively in {dtype}")


def heads(batch, num_heads, num_kv_heads, length, size, dtype):
    """Query, key, value and a gradient in several memory layouts, with scores from -100 to 100."""
    generator = torch.Generator().manual_seed(length)
    query = 4 * torch.randn(batch, length, num_heads, size, generator=generator).transpose(1, 2)
    key = 3 * torch.randn(batch, num_kv_heads, length, size, generator=generator)
    both = torch.randn(batch, length, 2 * num_kv_heads, size, generator=generator).to(dtype)
    gradient = torch.randn(batch, num_heads, size, length, generator=generator).mT
    return query.to(dtype), key.to(dtype), both[:, :, :num_kv_heads].transpose(1, 2), gradient.to(dtype)


def exact(query, key, value, gradient, scale):
    inputs = [x.double().requires_grad_() for x in (query, key, value)]
    output = F.scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=True, scale=scale)
    return output, torch.autograd.grad(output, inputs, gradient.double())


def error(found, expected):
    return (found.double() - expected).norm() / expected.norm()


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_float64(shape, dtype, monkeypatch, one_thread):
    supported(dtype)
    monkeypatch.setattr(causal_attention, "_forward", None)
    monkeypatch.setattr(causal_attention, "_backward", None)  # torch's are not used
    query, key, value, gradient = heads(*shape, dtype)
    inputs = [x.detach().requires_grad_() for x in (query, key, value)]
    output = causal_attention.causal_attention(*inputs, 0.2)
    found = torch.autograd.grad(output, inputs, gradient)
    expected_output, expected = exact(query, key, value, gradient, 0.2)
    assert error(output, expected_output) < ROUNDING[dtype]
    for one, other, x in zip(found, expected, inputs, strict=True):
        assert (one.dtype, one.shape) == (x.dtype, x.shape)
        assert error(one, other) < ROUNDING[dtype]


@needs
def test_unreachable_keys_have_no_gradient_and_no_influence():
    query, key, value, gradient = heads(1, 2, 1, 256, 64, torch.float32)
    gradient[:, :, 100:] = 0.0  # so keys from 100 on are not read
    output, log_sums = causal_attention.causal_forward(query, key, value, 0.1)
    of_all = causal_attention.causal_backward(gradient, query, key, value, output, log_sums, 0.1)
    key[:, :, 100:], value[:, :, 100:] = 1e4, -1e4
    of_others = causal_attention.causal_backward(gradient, query, key, value, output, log_sums, 0.1)
    for one, other in zip(of_all, of_others, strict=True):
        assert not one[:, :, 100:].any()
        assert torch.equal(one[:, :, :100], other[:, :, :100])


@needs
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", ["query", "key", "value", "gradient"])
def test_not_a_number_reaches_the_gradients(place, dtype):
    """NaN at a position reaches the gradients that depend on it, and no others."""
    supported(dtype)
    inputs = dict(zip(("query", "key", "value", "gradient"), heads(2, 2, 2, 200, 32, dtype), strict=True))
    inputs[place][1, 1, 150, 3] = torch.nan
    query, key, value, gradient = inputs.values()
    output, log_sums = causal_attention.causal_forward(query, key, value, 0.1)
    found = causal_attention.causal_backward(gradient, query, key, value, output, log_sums, 0.1)
    for one, is_reached in zip(found, (True, True, place != "value"), strict=True):
        assert one[1, 1, 150].isnan().any() == is_reached
        assert not one[0].isnan().any()
        assert not one[1, 0].isnan().any()


@needs
@pytest.mark.parametrize("num_threads", [2, 5])
def test_threads_change_nothing(num_threads):
    """With more threads than heads of keys, torch's own gradients divide the queries."""
    query, key, value, gradient = heads(2, 2, 2, 140, 32, torch.float32)
    output, log_sums = causal_attention.causal_forward(query, key, value, 0.1)
    arguments = gradient, query, key, value, output, log_sums, 0.1
    single, before = causal_attention.causal_backward(*arguments), torch.get_num_threads()
    try:
        torch.set_num_threads(num_threads)
        several = causal_attention.causal_backward(*arguments)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(single, several, strict=True):
        assert torch.equal(one, other) if num_threads <= 4 else error(one, other.double()) < 1e-5


@needs
def test_compiled_attention_takes_native_gradients(monkeypatch):
    """`torch.compile` finds the operation in its graph, and the gradients are those of the eager layer."""
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return original(*arguments)

    original = native.library
    monkeypatch.setattr(native, "library", counted)
    layer = materialize(Attention(64, num_heads=2, num_kv_heads=1, kernel=DotProductAttention))
    x = torch.randn(2, 128, 64, requires_grad=True)
    wanted = [x, *layer.parameters()]
    expected = torch.autograd.grad(layer(x, Context()).square().sum(), wanted)
    assert not calls  # eager
    compiled = torch.compile(lambda x: layer(x, Context()).square().sum(), fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(x), wanted)
    assert calls
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@needs
def test_compiled_attention_of_fewer_heads_than_threads_is_torch_s():
    """In the memory layout that the compiled code expects."""
    query, key, value, gradient = heads(1, 4, 1, 160, 64, torch.float32)
    inputs = [x.requires_grad_() for x in (query, key, value)]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        output = torch.compile(lambda *x: causal_attention.causal_attention(*x, 0.2))(*inputs)
        found = torch.autograd.grad(output, inputs, gradient)
    finally:
        torch.set_num_threads(before)
    expected_output, expected = exact(query, key, value, gradient, 0.2)
    for one, other in zip((output, *found), (expected_output, *expected), strict=True):
        assert error(one, other) < ROUNDING[torch.float32]


@needs
def test_selective_checkpointing_saves_native_attention(monkeypatch):
    calls = []
    forward = causal_attention._functions
    monkeypatch.setattr(causal_attention, "_functions", lambda key: calls.append(key) or forward(key))
    policy = SelectiveActivationCheckpointing()
    inputs = [x.requires_grad_() for x in heads(1, 2, 1, 160, 64, torch.float32)[:3]]

    def attention(*inputs):
        return causal_attention.causal_attention(*inputs, 0.2)

    torch.compile(lambda *x: policy(attention, *x), backend="aot_eager")(*inputs).sum().backward()
    assert len(calls) == 2  # forward and backward


@needs
def test_scores_of_minus_infinity_have_no_weight():
    query, key, value, _ = heads(1, 1, 1, 256, 64, torch.float32)
    query[:] = query.abs()
    key[:, :, :70] = -torch.inf  # more than a block of keys
    output, log_sums = causal_attention.causal_forward(query, key, value, 0.1)
    expected, expected_sums = causal_attention._forward(query, key, value, 0.0, True, scale=0.1)
    torch.testing.assert_close(output[:, :, 70:], expected[:, :, 70:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_sums[:, :, 70:], expected_sums[:, :, 70:], rtol=1e-5, atol=1e-5)


@needs
@pytest.mark.parametrize(
    ("change", "is_native"),
    [
        ({}, True),
        ({"dtype": torch.float64}, False),
        ({"device": "cuda"}, False),
        ({"causal": False}, False),
        ({"dropout": 0.1}, False),
        ({"window_size": 100}, False),
        ({"window_size": 256}, True),
        ({"has_documents": True}, False),
        ({"num_queries": 128}, False),
        ({"num_queries": 100, "num_keys": 100}, False),
        ({"head_size": 48, "value_head_size": 48}, False),
        ({"value_head_size": 32}, False),
        ({"needs_gradient": False}, False),
    ],
)
def test_tasks_with_native_gradients(change, is_native):
    assert causal_attention.has_native_kernel(TASK._replace(**change)) == is_native


def test_heads_that_autocast_would_cast_take_torch():
    narrow, wide = torch.ones(1, dtype=torch.bfloat16), torch.ones(1)
    assert causal_attention.are_equally_typed(wide, wide)
    assert not causal_attention.are_equally_typed(wide, narrow)
    with torch.autocast("cpu", torch.bfloat16):
        assert causal_attention.are_equally_typed(narrow, narrow)
        assert not causal_attention.are_equally_typed(wide, wide)


def test_other_cpus_take_torch(monkeypatch):
    monkeypatch.setattr(native, "MULTIPLIES_FLOAT32", False)
    assert not causal_attention.has_native_kernel(TASK)


def test_without_a_compiler_torch_computes_the_gradients(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compiling.library.cache_clear()
    try:
        query, key, value, gradient = heads(1, 2, 1, 128, 32, torch.float32)
        inputs = [x.detach().requires_grad_() for x in (query, key, value)]
        found = torch.autograd.grad(causal_attention.causal_attention(*inputs, 0.2), inputs, gradient)
    finally:
        compiling.library.cache_clear()
    for one, other in zip(found, exact(query, key, value, gradient, 0.2)[1], strict=True):
        assert error(one, other) < ROUNDING[torch.float32]
    assert "slower functions of torch replace causal_attention.cpp" in caplog.text
    assert "no-compiler" in caplog.text


@needs
def test_the_compiler_may_have_arguments(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "env JUNIPER= g++ -DJUNIPER")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compiling.library.cache_clear()
    try:
        assert compiling.library(causal_attention.SOURCE) is not None
    finally:
        compiling.library.cache_clear()


@needs
def test_without_threads_of_openmp_torch_computes_the_gradients(monkeypatch, caplog):
    monkeypatch.setattr(compiling.torch._C, "__file__", ctypes.util.find_library("c"))
    compiling.library.cache_clear()
    try:
        assert compiling.library(causal_attention.SOURCE) is None
    finally:
        compiling.library.cache_clear()
    assert "GOMP_parallel" in caplog.text


def test_a_folder_that_others_can_write_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    folder = compiling._folder()
    assert (folder.stat().st_mode & 0o777, folder.stat().st_uid) == (0o700, os.getuid())
    folder.chmod(0o777)
    with pytest.raises(OSError, match="others can write to"):
        compiling._folder()
