"""Schedules composed of phases against formulas and torch's schedulers."""

import itertools
import math

import pytest
import torch
from torch.optim import lr_scheduler

from ml.config import ConfigError
from ml.training import CosineSchedule, LinearSchedule, PhasedSchedule, WarmupStableDecay
from ml.training.schedules.phases import (
    ConstantPhase,
    CosinePhase,
    LinearPhase,
    PolynomialPhase,
    PowerLawPhase,
    RestartsPhase,
    SquareRootPhase,
    WarmupPhase,
)


def phased(num_steps, *phases):
    """A schedule of (class, options) pairs."""
    named = {
        f"phase_{i}": lambda kind=kind, options=options: kind(**options) for i, (kind, options) in enumerate(phases)
    }
    return PhasedSchedule(num_steps, phases=named)


def by_torch(make, num_steps):
    """The factors of a scheduler of torch, which counts from 0: that of step s is its value after s of its steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    factors = []
    for _ in range(num_steps):
        optimizer.step()
        scheduler.step()
        factors.append(optimizer.param_groups[0]["lr"])
    return factors


FORMULAS = {
    "linear": (LinearPhase, {"end": 0.2}, lambda p: 1.0 - 0.8 * p),
    "cosine": (CosinePhase, {"end": 0.2}, lambda p: 0.2 + 0.4 * (1.0 + math.cos(math.pi * p))),
    "square root": (SquareRootPhase, {"end": 0.2}, lambda p: 0.2 + 0.8 * (1.0 - math.sqrt(p))),
    "polynomial": (PolynomialPhase, {"end": 0.2, "power": 3.0}, lambda p: 0.2 + 0.8 * (1.0 - p) ** 3),
    "constant": (ConstantPhase, {}, lambda p: 1.0),
    "power law": (PowerLawPhase, {"exponent": 0.7}, lambda p: (10 / (10 + 40 * p)) ** 0.7),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_phase_after_warmup_is_its_formula(name):
    kind, options, formula = FORMULAS[name]
    schedule = phased(50, (WarmupPhase, {"num_steps": 10}), (kind, options))
    expected = [step / 10 for step in range(1, 11)] + [formula((step - 10) / 40) for step in range(11, 51)]
    assert [schedule(step) for step in range(1, 51)] == pytest.approx(expected, abs=1e-12)


def test_each_phase_begins_where_the_one_before_ended():
    schedule = phased(
        100,
        (WarmupPhase, {"num_steps": 10, "start": 0.1, "end": 0.8}),
        (ConstantPhase, {}),
        (CosinePhase, {"fraction": 0.3, "end": 0.5}),
        (LinearPhase, {"num_steps": 20, "end": 0.9}),
        (PolynomialPhase, {"num_steps": 10, "end": 0.1}),
    )
    factors = [0.1, *(schedule(step) for step in range(1, 101))]
    assert [factors[step] for step in (10, 40, 70, 90, 100)] == pytest.approx([0.8, 0.8, 0.5, 0.9, 0.1])
    assert factors[80] == pytest.approx(0.7)
    assert max(abs(a - b) for a, b in itertools.pairwise(factors)) < 0.16  # no jumps


@pytest.mark.parametrize(
    ("phases", "theirs"),
    [
        (
            [(CosinePhase, {"end": 0.1})],
            lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=60, eta_min=0.1),
        ),
        ([(PolynomialPhase, {"power": 1.5})], lambda optimizer: lr_scheduler.PolynomialLR(optimizer, 61, power=1.5)),
        (
            [(WarmupPhase, {"num_steps": 12, "start": 0.25}), (ConstantPhase, {})],
            lambda optimizer: lr_scheduler.LinearLR(optimizer, start_factor=0.25, total_iters=12),
        ),
    ],
    ids=["cosine", "polynomial", "warmup"],
)
def test_phases_are_torch_s_schedulers(phases, theirs):
    schedule = phased(60, *phases)
    assert [schedule(step) for step in range(1, 61)] == pytest.approx(by_torch(theirs, 60), abs=1e-9)


TO_ZERO = {
    "linear": (LinearPhase, {"end": 0.0}, lambda p: 1.0 - p),
    "cosine": (CosinePhase, {"end": 0.0}, lambda p: (1.0 + math.cos(math.pi * p)) / 2.0),
    "square root": (SquareRootPhase, {}, lambda p: 1.0 - math.sqrt(p)),
    "polynomial": (PolynomialPhase, {"power": 3.0}, lambda p: (1.0 - p) ** 3),
    "falling warmup": (WarmupPhase, {"start": 1.0, "end": 0.0}, lambda p: 1.0 - p),
}


@pytest.mark.parametrize("name", TO_ZERO)
def test_a_decay_to_zero_ends_after_its_last_step(name):
    kind, options, formula = TO_ZERO[name]
    schedule = phased(50, (WarmupPhase, {"num_steps": 10}), (kind, {"num_steps": 20, **options}), (ConstantPhase, {}))
    factors = [schedule(step) for step in range(1, 51)]
    assert factors[10:30] == pytest.approx([formula(step / 21) for step in range(1, 21)])
    assert min(factors[:30]) > 0.0
    assert factors[30:] == [0.0] * 20  # the phase after it was asked to stay there


def test_restarts_are_torch_s_but_for_the_steps_that_end_a_cycle():
    schedule = phased(70, (RestartsPhase, {"num_cycles": 3, "growth": 2.0, "end": 0.05}))
    make = lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 10, 2, eta_min=0.05)  # noqa: E731
    theirs = by_torch(make, 70)
    for step, expected in enumerate(theirs, start=1):
        # There torch is at the begin of the next cycle already, and never gets to the end of one.
        assert schedule(step) == pytest.approx(0.05 if step in (10, 30, 70) else expected, abs=1e-9)


def test_restarts_may_begin_lower_each_time_and_be_shorter_than_their_cycles():
    schedule = phased(60, (RestartsPhase, {"num_cycles": 3, "growth": 1.0, "decay": 0.5}))
    for step in range(1, 61):
        cycle, index = divmod(step - 1, 20)
        expected = 0.5**cycle * (1.0 + math.cos(math.pi * (index + 1) / 21)) / 2.0  # 0 would be in step 21 of a cycle
        assert schedule(step) == pytest.approx(expected)
    few = phased(3, (RestartsPhase, {"num_cycles": 8}))
    assert all(0.0 <= few(step) <= 1.0 for step in (1, 2, 3))


@pytest.mark.parametrize(
    ("whole", "phases"),
    [
        (CosineSchedule(80, 8, 0.1), [(WarmupPhase, {"num_steps": 8}), (CosinePhase, {"end": 0.1})]),
        (LinearSchedule(80, 8, 0.1), [(WarmupPhase, {"fraction": 0.1}), (LinearPhase, {"end": 0.1})]),
        (
            WarmupStableDecay(80, 8, 0.25, 0.1),
            [(WarmupPhase, {"num_steps": 8}), (ConstantPhase, {}), (LinearPhase, {"fraction": 0.25, "end": 0.1})],
        ),
    ],
    ids=lambda case: type(case).__name__,
)
def test_the_schedules_of_one_shape_can_be_composed(whole, phases):
    schedule = phased(80, *phases)
    assert [schedule(step) for step in range(1, 81)] == pytest.approx([whole(step) for step in range(1, 81)])


TWO = "Trainer.schedule = @PhasedSchedule\nPhasedSchedule.phases = {'rise': @WarmupPhase, 'fall': @LinearPhase}\n"


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        ("", r"PhasedSchedule.phases may have one phase without a length, not 2: rise: rest, fall: rest"),
        (
            "WarmupPhase.num_steps = 3\nLinearPhase.num_steps = 8",
            r"phases must have Trainer.num_steps \(12\) steps in total: rise: 3, fall: 8",
        ),
        (
            "WarmupPhase.num_steps = 13",
            r"phases must have Trainer.num_steps \(12\) steps in total: rise: 13, fall: rest",
        ),
        ("WarmupPhase.num_steps = 1\nWarmupPhase.fraction = 0.1", "fraction and num_steps cannot both be set"),
        ("WarmupPhase.fraction = 1.5", r"fraction must be in \[0, 1\], not 1.5"),
        ("WarmupPhase.num_steps = -1", "num_steps must not be negative: -1"),
        ("WarmupPhase.num_steps = 1\nWarmupPhase.start = -0.5", "start must be at least 0"),
        ("WarmupPhase.num_steps = 1\nfall/LinearPhase.end = -0.5", "end must be at least 0"),
    ],
)
def test_phases_that_do_not_make_a_run_are_refused(tiny, bindings, message):
    with pytest.raises(ConfigError, match=message):
        tiny(TWO, bindings)


@pytest.mark.parametrize("option", ["num_cycles = 0", "growth = 0.0", "decay = 1.5", "end = -1.0"])
def test_restarts_out_of_range_are_refused_by_name(tiny, option):
    bindings = "Trainer.schedule = @PhasedSchedule\nPhasedSchedule.phases = {'again': @RestartsPhase}"
    with pytest.raises(ConfigError, match=f"RestartsPhase.{option.split()[0]} must be"):
        tiny(bindings, f"RestartsPhase.{option}")


def test_a_run_follows_its_phases(tiny, run_in):
    bindings = TWO + "WarmupPhase.fraction = 0.25\nfall/LinearPhase.end = 0.1\nTrainer.log_every = 1"
    folder, _, _ = run_in(tiny(bindings))
    rates = {record["step"]: record["learning_rate"] for record in folder.metrics()}
    assert [rates[step] for step in (1, 3, 12)] == pytest.approx([1e-2 / 3, 1e-2, 1e-3])
