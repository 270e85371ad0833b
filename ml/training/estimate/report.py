"""Text of plans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ml.models.summary import size_text
from ml.terminal import table
from ml.training.estimate.candidates import Candidate
from ml.training.estimate.measurements import Memory
from ml.training.estimate.micro_batches import Fit
from ml.training.estimate.planning import StepMemory
from ml.training.estimate.plans import Plan

_PURPOSES = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "activations": "activations",
    "working": "working memory",
}


def describe_plan(plan: Plan, device_memory: int | None) -> str:
    """Formats memory, communication and time of a step of one rank.

    Args:
        plan: The plan.
        device_memory: Bytes of a device; None if unknown.
    """
    steps = f"{plan.num_micro_batches} micro-batch{'es' if plan.num_micro_batches > 1 else ''}"
    steps += f" of {plan.micro_batch_size} sequence{'s' if plan.micro_batch_size > 1 else ''}"
    world = plan.sizes.world_size
    several = f"{world:,} processes ({plan.sizes}), a step of {steps} on each data rank"
    lines = [
        f"plan              {several if world > 1 else f'one process, a step of {steps}'}",
        "",
        *_memory(plan, device_memory),
    ]
    if plan.communication:
        lines += ["", *_communication(plan)]
    return "\n".join([*lines, "", *_time(plan)])


def describe_candidates(candidates: Iterable[Candidate], device_memory: int) -> str:
    """Formats a table of meshes, those that fit first, the fastest at the top.

    Args:
        candidates: The meshes.
        device_memory: Bytes of a device.
    """
    planned = sorted(
        (candidate.plan for candidate in candidates if candidate.plan is not None),
        key=lambda plan: (plan.total_memory > device_memory, plan.step_seconds),
    )
    rows = [("mesh", "memory of a rank", "", "step time", "tokens/s")]
    for plan in planned:
        fits = "fits" if plan.total_memory <= device_memory else "does not fit"
        time, rate = f"{plan.step_seconds:.3g} s", f"{plan.tokens_per_second:,.0f}"
        rows.append((str(plan.sizes), size_text(plan.total_memory), fits, time, rate))
    return "\n".join(table(rows, right=[False, True, False, True, True]))


def describe_obstacles(candidates: Iterable[Candidate]) -> list[str]:
    """Returns a line for each mesh that the run cannot use, with the reason."""
    return [f"{one.sizes}: {one.obstacle}" for one in candidates if one.obstacle is not None]


def describe_fits(fits: Sequence[Fit], device_memory: int) -> str:
    """Formats a table of the policies of activation checkpointing with the largest micro-batch of each.

    Args:
        fits: The policies.
        device_memory: Bytes of the device.
    """
    rows = [("activation_checkpointing", "largest micro_batch_size", "memory", "step time")]
    for fit in fits:
        if fit.plan is None:
            rows.append((fit.policy, "none fits", f"more than {size_text(device_memory)}", ""))
        else:
            plan = fit.plan
            time = f"{plan.step_seconds:.3g} s"
            rows.append((fit.policy, f"{plan.micro_batch_size:,}", size_text(plan.total_memory), time))
    return "\n".join(table(rows, right=[False, True, True, True]))


def describe_memory(memory: StepMemory, title: str) -> str:
    """Formats the memory of a step by purpose.

    Args:
        memory: The memory.
        title: The first line.
    """
    return "\n".join(_purposes(title, memory.by_purpose, memory.peak))


def _purposes(title: str, memory: Memory, peak: float) -> list[str]:
    rows = [(title, "")]
    rows += [(label, size_text(getattr(memory, name))) for name, label in _PURPOSES.items()]
    rows.append(("peak", size_text(peak)))
    return table(rows, right=[False, True])


def _memory(plan: Plan, device_memory: int | None) -> list[str]:
    lines = _purposes(f"memory of a rank{_stages(plan)}", plan.memory, plan.total_memory)
    if device_memory is not None:
        verdict = "fits" if plan.total_memory <= device_memory else "does not fit"
        lines[-1] += f"  {verdict} into {size_text(device_memory)}"
    return lines


def _stages(plan: Plan) -> str:
    if not plan.stages:
        return ""
    name = "stage" if len(plan.stages) == 1 else "stages"
    return f" ({name} {', '.join(map(str, plan.stages))} of {plan.num_stages}, which needs most)"


def _communication(plan: Plan) -> list[str]:
    rows = [("axis", "collective", "calls a step", "of tensors of", "sent by a rank", "time")]
    for (axis, kind), one in sorted(plan.communication.items()):
        sizes = size_text(one.payload), size_text(one.sent)
        rows.append((axis, kind, f"{one.calls:,.0f}", *sizes, f"{one.seconds:.3g} s"))
    return table(rows, right=[False, False, True, True, True, True])


def _time(plan: Plan) -> list[str]:
    used = "" if plan.utilization is None else f", {100 * plan.utilization:.0f}% of peak FLOPs (MFU)"
    parts = [f"computation {plan.work.seconds:.3g} s"]
    if plan.exposed_seconds:
        parts.append(f"blocking communication {plan.exposed_seconds:.3g} s")
    if plan.bubble_seconds:
        parts.append(f"bubble of the pipeline {plan.bubble_seconds:.3g} s")
    if plan.overlapped_seconds:
        parts.append(f"overlapped communication {plan.overlapped_seconds:.3g} s")
    return [
        f"step time         at least {plan.step_seconds:.3g} s: {', '.join(parts)}",
        f"throughput        at most {plan.tokens_per_second:,.0f} tokens/s{used}",
    ]
