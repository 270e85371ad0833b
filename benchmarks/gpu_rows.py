"""The rows of `on_gpu.py`: a table, a name, and a function that measures. On a CPU the sizes are small."""

import importlib.util
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_recurrences import recurrences
from gpu_timing import ROUNDS, Row, peak_memory, reset_memory, seconds, timed
from llama_steps import Shape, batch_of, juniper_model, juniper_step, step_of
from torch import nn

import ml
from ml.api import build_trainer
from ml.layers import (
    AttentionKernel,
    Context,
    DotProductAttention,
    FlexAttention,
    GatedMLP,
    Linear,
    VariableLengthAttention,
)
from ml.layers.attention_kernels import Weighting, task_of
from ml.layers.moe import MixtureOfExperts
from ml.models import materialize
from ml.models.generation import generate
from ml.models.sampling import Sampler
from ml.training import Checkpoints
from ml.training.checkpoints.state_files import snapshot
from ml.training.metrics.peak_flops import peak_flops

STEPS = 4  # of training between two synchronizations; a run synchronizes where it logs
SHAPES = {
    "124M": Shape(50304, 768, 12, 12, 12, 2048, batch=16, length=1024),
    "1B": Shape(32768, 2048, 18, 32, 8, 7168, batch=4, length=2048),
}
FULL = {"124M": SHAPES["124M"]._replace(batch=64), "1B": SHAPES["1B"]._replace(batch=16)}
FIRST = (("124M", "transformers"), ("1B", "handwritten"))  # RESULTS.md does not have them yet
SMALL = {"small": Shape(512, 64, 2, 4, 2, 128, batch=2, length=64)}


def rows(device: torch.device) -> Iterator[Row]:
    """Yields all rows: on a GPU those first that were never measured, on a CPU those that compile last.

    Args:
        device: The device; "cpu" takes small sizes.
    """
    is_small = device.type == "cpu"
    shapes = SMALL if is_small else SHAPES
    recipe = "base.gin" if is_small else "recipes/gpt2_124m.gin"
    alone = _steps(device, SMALL if is_small else FULL)
    pairs = sorted(itertools.product(shapes, ("transformers", "handwritten")), key=lambda pair: pair not in FIRST)
    compiled, eager = (
        [_comparison(device, name, shapes[name], other, compile) for name, other in pairs] for compile in (True, False)
    )
    others = [
        _attention(device, *((1, 4, 2, 256, 32) if is_small else (2, 16, 4, 4096, 128))),
        _layers(device, *((64, 128) if is_small else (2048, 8192))),
        recurrences(device, *((128, 1) if is_small else (8192, 32))),
        _ends(device, recipe, 64 if is_small else 512),
    ]
    if is_small:
        yield from itertools.chain(eager, *others, alone, compiled)
    else:
        yield from itertools.chain(compiled[: len(FIRST)], *others, compiled[len(FIRST) :], alone, eager)


def _steps(device: torch.device, shapes: dict[str, Shape]) -> Iterator[Row]:
    for name, shape in shapes.items():
        for weights in ("float32", "bfloat16"):
            sizes = f"{name}, {shape.batch} x {shape.length} tokens, weights in {weights}"
            yield Row("training step, bfloat16", sizes, partial(training_step, device, shape, weights))


def _ends(device: torch.device, recipe: str, num_tokens: int) -> Iterator[Row]:
    yield Row("checkpoint", recipe, partial(checkpoint, device, recipe))
    yield Row("generation", "Llama of base.gin", partial(generation, device, num_tokens))


def _comparison(device: torch.device, name: str, shape: Shape, other: str, compile: bool) -> Row:
    state = "compiled" if compile else "eager"
    measure = partial(comparison, device, shape, other, compile)
    return Row("training steps, bfloat16", f"{name} {state} against {other}", measure)


def training_step(device: torch.device, shape: Shape, weights: str) -> dict[str, Any]:
    """Tokens a second, MFU with causal attention counted once, and peak memory: compiled, with CUDA graphs on a GPU."""
    precision = "bfloat16" if weights == "float32" else "pure bfloat16"
    reset_memory(device)
    has_graphs = device.type == "cuda"
    step = juniper_step(juniper_model(shape).to(device), batch_of(shape, device), precision, True, has_graphs)
    for _ in range(4):  # the third one captures
        step()
    taken = statistics.median(seconds(step, device, STEPS) for _ in range(ROUNDS))
    peak, memory = peak_flops(device, torch.bfloat16), peak_memory(device)
    values = {
        "ms": 1000 * taken,
        "tokens_per_second": shape.batch * shape.length / taken,
        "mfu": shape.flops / taken / peak.flops_per_second,
        "peak": peak.source,
        "of_the_measured_peak": shape.flops / taken / product_rate(device),
    }
    return values if memory is None else {**values, "memory_gib": memory / 2**30}


def product_rate(device: torch.device) -> float:
    """FLOP/s of the product of two matrices in bfloat16."""
    size = 512 if device.type == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2.0 * size**3 / (timed(lambda: torch.mm(left, right), device)["ms"] / 1000)


def comparison(device: torch.device, shape: Shape, other: str, compile: bool) -> dict[str, Any]:
    """Tokens a second and MFU of both models, alternating, neither with CUDA graphs, and the peak memory of ours."""
    if other == "transformers" and not importlib.util.find_spec("transformers"):
        return {"skipped": "transformers is not installed"}
    reset_memory(device)
    ours = step_of("juniper", shape, "bfloat16", compile, device)
    first = ours().item()
    ours()
    our_memory = peak_memory(device)
    theirs = step_of(other, shape, "bfloat16", compile, device)
    second = theirs().item()
    difference = abs(first - second) / first
    assert difference < 0.01, f"the losses differ: {first} and {second}"
    theirs()
    pairs = [(seconds(ours, device, STEPS), seconds(theirs, device, STEPS)) for _ in range(ROUNDS)]
    mine, others = (statistics.median(column) for column in zip(*pairs, strict=True))
    tokens, peak = shape.batch * shape.length, peak_flops(device, torch.bfloat16)
    values = {
        "tokens_per_second": tokens / mine,
        "other_tokens_per_second": tokens / others,
        "ratio": statistics.median(b / a for a, b in pairs),
        "mfu": shape.flops / mine / peak.flops_per_second,
        "other_mfu": shape.flops / others / peak.flops_per_second,
    }
    return values if our_memory is None else {**values, "memory_gib": our_memory / 2**30}


def _attention(
    device: torch.device, batch: int, heads: int, kv_heads: int, length: int, head_size: int
) -> Iterator[Row]:
    masks: dict[str, Callable[[], Weighting]] = {
        "causal": Weighting,
        f"window {length // 8}": partial(Weighting, window_size=length // 8),
        f"documents of {length // 8}": partial(_weighting_of_documents, batch, length, device),
    }
    sizes = [(batch, count, length, head_size) for count in (heads, kv_heads, kv_heads)]
    for mask, weighting in masks.items():
        for kernel in (DotProductAttention, FlexAttention, VariableLengthAttention):
            measure = partial(attention, kernel, weighting, sizes, device)
            yield Row(f"attention, {length} tokens, {mask}", kernel.__name__, measure)


def _weighting_of_documents(batch: int, length: int, device: torch.device) -> Weighting:
    return Weighting(documents=(torch.arange(length, device=device) // (length // 8)).expand(batch, -1).contiguous())


def attention(
    kernel: Callable[[], AttentionKernel],
    make_weighting: Callable[[], Weighting],
    sizes: list[tuple[int, ...]],
    device: torch.device,
) -> dict[str, Any]:
    """Milliseconds of forward and backward pass of one layer, and its peak memory."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    tensors = [torch.randn(size, device=device, dtype=dtype, requires_grad=True) for size in sizes]
    compute, gradient = kernel(), torch.randn(sizes[0], device=device, dtype=dtype)
    weighting = make_weighting()
    if obstacle := compute.obstacle(task_of(*tensors, weighting)):
        return {"skipped": f"does not support {obstacle}"}

    def step() -> None:
        torch.autograd.grad(compute(*tensors, weighting, Context()), tensors, gradient)

    return timed(step, device)


def _layers(device: torch.device, hidden: int, tokens: int) -> Iterator[Row]:
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    linear = partial(Linear, bias=False)
    dense = partial(GatedMLP, hidden, intermediate_size=2 * hidden, linear=linear)
    expert = partial(GatedMLP, intermediate_size=hidden, linear=linear)
    experts = partial(MixtureOfExperts, hidden, num_experts=8, experts_per_token=2, expert=expert, grouped=True)
    for name, make in {"dense MLP": dense, "8 experts of half the size, top 2": experts}.items():
        yield Row(f"MLP, {tokens} tokens", name, partial(layer, make, (1, tokens, hidden), device, dtype))


def layer(
    make: Callable[[], nn.Module], size: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """Milliseconds of forward and backward pass of a layer."""
    module = materialize(make()).to(device, dtype)
    x = torch.randn(size, device=device, dtype=dtype, requires_grad=True)

    def step() -> None:
        module(x).sum().backward()
        module.zero_grad(set_to_none=True)

    return timed(step, device)


def checkpoint(device: torch.device, recipe: str) -> dict[str, Any]:
    """Milliseconds that a save blocks, beside the seconds until it is on the disk."""
    config = ml.load(recipe, "TokenFiles.paths = 'tokens'", allow_unused_bindings=True)  # the data is not opened
    state = build_trainer(config).start(device)
    with tempfile.TemporaryDirectory() as folder:
        saver = Checkpoints().open(Path(folder), lambda: None)
        saver.save(snapshot(state, "", ""))  # allocates the host copy
        saver.wait()
        state.step = 1
        blocked = seconds(lambda: saver.save(snapshot(state, "", "")), device)
        begun = time.perf_counter()
        saver.wait()
        values = {"blocked_ms": 1000 * blocked, "written_s": time.perf_counter() - begun}
        saver.close()
    return values


def generation(device: torch.device, num_tokens: int) -> dict[str, Any]:
    """Tokens a second of greedy decoding with a cache, for one text and for 16."""
    model = ml.build(ml.load("base.gin"), device).eval()
    values = {}
    for count in (1, 16):
        write = partial(generate, model, [[1, 2, 3, 4]] * count, num_tokens, Sampler(0.0))
        seconds(lambda: list(write()), device)  # noqa: B023
        values[f"tokens_per_second_of_{count}"] = count * num_tokens / seconds(lambda: list(write()), device)  # noqa: B023
    return values
