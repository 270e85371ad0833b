"""Training steps against transformers and a handwritten model: one Llama, one process, alternating.

A step is forward, loss, backward, clipping and fused AdamW, with the same weights and tokens on both sides. The first
losses must agree before anything is timed. Both sides keep the pages of freed tensors, as a run of Juniper does.

    python benchmarks/train_against_transformers.py --against=transformers --compile --precision=bfloat16
    python benchmarks/train_against_transformers.py --memory
"""

import argparse
import ctypes
import math
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import torch
from llama_steps import PRECISIONS, Shape, step_of
from timing import compare, is_skipped, seconds

from ml.training.host_memory import keep_freed_pages

COMPUTE = ("float32", "bfloat16")  # of products; the weights are float32
KINDS = ("juniper", "transformers", "handwritten")
LOSS_TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-3}  # relative: rounding of the products
BYTES_PER_WEIGHT = 4 + 8 + 28  # norm, clipping, AdamW: read and written once each


def fastest(call: Callable[[], object], clock: Callable[[], float], rounds: int = 5) -> float:
    """Shortest time of a call, in seconds."""
    return min(seconds(call, clock) for _ in range(rounds + 1))


def product_rate(shape: Shape, dtype: torch.dtype, clock: Callable[[], float]) -> tuple[float, float]:
    """FLOP/s of the products of the step by themselves: all of them (forward and backward), and the fastest one."""
    tokens, total, operations, best = shape.batch * shape.length, 0.0, 0.0, 0.0
    for (inputs, outputs), count in shape.products.items():
        x, weight = torch.randn(tokens, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
        gradient = torch.randn(tokens, outputs).to(dtype)
        y, x_gradient, weight_gradient = (torch.empty_like(one) for one in (gradient, x, weight))
        for left, right, out in (
            (x, weight.t(), y),
            (gradient, weight, x_gradient),
            (gradient.t(), x, weight_gradient),
        ):
            taken = fastest(lambda left=left, right=right, out=out: torch.mm(left, right, out=out), clock)
            flops = 2.0 * tokens * inputs * outputs
            total, operations, best = total + count * taken, operations + count * flops, max(best, flops / taken)
    return operations / total, best


def bandwidth(clock: Callable[[], float]) -> float:
    """Bytes a second, read and written, of a copy beyond the caches."""
    source = torch.ones(64 * 2**20)
    target = torch.empty_like(source)
    return 2 * source.numel() * source.element_size() / fastest(lambda: target.copy_(source), clock)


def report_speed(
    shape: Shape,
    precision: str,
    against: list[str],
    compiles: list[bool],
    rounds: int,
    clock: Callable[[], float],
) -> None:
    """Prints tokens a second of both sides, their ratio, and the fractions of the peak and the roofline."""
    rate, best = product_rate(shape, PRECISIONS[precision].compute_dtype, clock)
    weights = shape.vocab * shape.hidden + sum(n * i * o for (i, o), n in shape.products.items())
    roofline = shape.flops / rate + weights * BYTES_PER_WEIGHT / bandwidth(clock)
    where = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{precision}, {shape.batch} x {shape.length} tokens, {where}")
    print(f"products by themselves: {rate / 1e9:.0f} GFLOP/s all, {best / 1e9:.0f} GFLOP/s the fastest")
    for kind in against:
        for compile in compiles:
            ours, theirs = step_of("juniper", shape, precision, compile), step_of(kind, shape, precision, compile)
            losses = ours().item(), theirs().item()
            assert math.isclose(*losses, rel_tol=LOSS_TOLERANCE[precision]), f"the losses differ: {losses}"
            result = compare(ours, theirs, rounds, warmup=1, clock=clock)
            tokens = shape.batch * shape.length
            achieved = shape.flops / result.first
            print(
                f"{kind:<12} {'compiled' if compile else 'eager':<8} "
                f"Juniper {tokens / result.first:7,.0f} tokens/s, other {tokens / result.second:7,.0f} tokens/s, "
                f"ratio {result.ratio:.2f}; Juniper at {achieved / rate:.0%} of the products' rate, "
                f"{achieved / best:.0%} of the fastest product, {roofline / result.first:.0%} of the roofline",
                flush=True,
            )


def peak_memory(kind: str, shape: Shape, precision: str, compile: bool) -> int:
    """Peak resident bytes of two steps after two others, of this process."""
    if kind == "juniper":
        keep_freed_pages()
    step = step_of(kind, shape, precision, compile)
    step(), step()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    step(), step()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def report_memory(shape: Shape, precision: str, compiles: list[bool]) -> None:
    """Prints the peak resident memory of each side, measured in a separate process."""
    context = multiprocessing.get_context("spawn")
    for compile in compiles:
        for kind in KINDS:
            with context.Pool(1) as pool:
                peak = pool.apply(peak_memory, (kind, shape, precision, compile))
            state = "compiled" if compile else "eager"
            print(f"{kind:<12} {precision} {state:<8} peak {peak / 2**20:,.0f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", choices=KINDS[1:], nargs="*", default=KINDS[1:])
    parser.add_argument("--precision", choices=COMPUTE, nargs="*", default=COMPUTE)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="only compiled, or only eager models")
    parser.add_argument("--sequence_length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cpu_time", action="store_true", help="CPU time of one thread, for a machine with other load")
    parser.add_argument("--memory", action="store_true", help="peak memory in separate processes instead of speed")
    arguments = parser.parse_args()
    shape = Shape(length=arguments.sequence_length)
    clock = time.perf_counter
    if arguments.cpu_time:
        torch.set_num_threads(1)
        clock = time.thread_time
    compiles = [False, True] if arguments.compile is None else [arguments.compile]
    for precision in arguments.precision:
        if is_skipped(PRECISIONS[precision].compute_dtype):
            continue
        if arguments.memory:
            report_memory(shape, precision, compiles)
        else:
            keep_freed_pages()
            report_speed(shape, precision, arguments.against, compiles, arguments.rounds, clock)


if __name__ == "__main__":
    main()
