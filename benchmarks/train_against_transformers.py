"""Training steps against transformers and a handwritten model: one Llama, one process, alternating.

A step is forward, loss, backward, clipping and fused AdamW, with the same weights and tokens on both sides. The first
losses must agree before anything is timed. Both sides keep the pages of freed tensors, as a run of Juniper does. With
`--own_allocator` only Juniper does: the other side has glibc's default, as its users do, in a separate process.

    python benchmarks/train_against_transformers.py --against=transformers --compile --precision=bfloat16
    python benchmarks/train_against_transformers.py --memory
"""

import argparse
import contextlib
import ctypes
import math
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from llama_steps import PRECISIONS, Shape, step_of
from timing import alternate, is_skipped, seconds

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


class Remote:
    """A step in a separate process with the default allocator.

    Args:
        kind: "transformers" or "handwritten".
        shape: The model and the batch.
        precision: Of the products.
        compile: Whether the model is compiled.
        cpu_time: Measures the CPU time of one thread.
    """

    def __init__(self, kind: str, shape: Shape, precision: str, compile: bool, cpu_time: bool):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        settings = (theirs, kind, shape, precision, compile, cpu_time, torch.get_num_threads())
        context.Process(target=serve_steps, args=settings, daemon=True).start()

    def step(self) -> tuple[float, float]:
        """Takes a step; returns its seconds and the loss before it."""
        self._pipe.send(None)
        return self._pipe.recv()


def serve_steps(
    pipe: Any, kind: str, shape: Shape, precision: str, compile: bool, cpu_time: bool, num_threads: int
) -> None:
    """Takes a step for each message."""
    torch.set_num_threads(num_threads)
    step, losses = step_of(kind, shape, precision, compile), []
    clock = time.thread_time if cpu_time else time.perf_counter
    with contextlib.suppress(EOFError):  # the other process has ended
        while True:
            pipe.recv()
            taken = seconds(lambda: losses.append(step().item()), clock)
            pipe.send((taken, losses[-1]))


def timed_step(
    kind: str, shape: Shape, precision: str, compile: bool, clock: Callable[[], float], own_allocator: bool
) -> tuple[float, Callable[[], float]]:
    """Returns the first loss of a kind of step, and a function that takes a step and returns its seconds."""
    if own_allocator:
        remote = Remote(kind, shape, precision, compile, clock is time.thread_time)
        return remote.step()[1], lambda: remote.step()[0]
    step = step_of(kind, shape, precision, compile)
    return step().item(), lambda: seconds(step, clock)


def report_speed(
    shape: Shape,
    precision: str,
    against: list[str],
    compiles: list[bool],
    rounds: int,
    clock: Callable[[], float],
    own_allocator: bool,
) -> None:
    """Prints tokens a second of both sides, their ratio, and the fractions of the peak and the roofline."""
    rate, best = product_rate(shape, PRECISIONS[precision].compute_dtype, clock)
    weights = shape.vocab * shape.hidden + sum(n * i * o for (i, o), n in shape.products.items())
    roofline = shape.flops / rate + weights * BYTES_PER_WEIGHT / bandwidth(clock)
    where = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    pages = "each with its own allocator" if own_allocator else "both keep freed pages"
    print(f"{precision}, {shape.batch} x {shape.length} tokens, {where}, {pages}")
    print(f"products by themselves: {rate / 1e9:.0f} GFLOP/s all, {best / 1e9:.0f} GFLOP/s the fastest")
    for kind in against:
        for compile in compiles:
            loss, ours = timed_step("juniper", shape, precision, compile, clock, False)
            other_loss, theirs = timed_step(kind, shape, precision, compile, clock, own_allocator)
            message = f"the losses differ: {loss}, {other_loss}"
            assert math.isclose(loss, other_loss, rel_tol=LOSS_TOLERANCE[precision]), message
            result = alternate(ours, theirs, rounds)
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
    parser.add_argument("--own_allocator", action="store_true", help="the other side with glibc's default allocator")
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
            settings = (arguments.against, compiles, arguments.rounds, clock, arguments.own_allocator)
            report_speed(shape, precision, *settings)


if __name__ == "__main__":
    main()
