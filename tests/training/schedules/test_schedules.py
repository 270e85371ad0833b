"""Schedules against their formulas."""

import math

import pytest

from ml.training import ConstantSchedule, CosineSchedule, LinearSchedule, WarmupStableDecay

SCHEDULES = [ConstantSchedule, LinearSchedule, CosineSchedule, WarmupStableDecay]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warmup_rises_in_equal_steps_to_one(schedule):
    factors = [schedule(100, warmup_steps=10)(step) for step in range(1, 11)]
    assert factors == pytest.approx([step / 10 for step in range(1, 11)])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (ConstantSchedule(40, 8), lambda step: 1.0),
        (LinearSchedule(40, 8, final_fraction=0.25), lambda step: 1.0 + (0.25 - 1.0) * (step - 8) / 32),
        (
            CosineSchedule(40, 8, final_fraction=0.25),
            lambda step: 0.25 + 0.5 * (1 - 0.25) * (1 + math.cos(math.pi * (step - 8) / 32)),
        ),
        (
            WarmupStableDecay(40, 8, decay_fraction=0.5, final_fraction=0.25),
            lambda step: 1.0 if step <= 20 else 1.0 - 0.75 * (step - 20) / 20,
        ),
    ],
    ids=lambda case: type(case).__name__,
)
def test_what_follows_warmup_is_the_formula(schedule, expected):
    for step in range(8, 41):
        assert schedule(step) == pytest.approx(expected(step), abs=1e-12)


@pytest.mark.parametrize("schedule", [LinearSchedule, CosineSchedule, WarmupStableDecay])
@pytest.mark.parametrize("warmup_steps", [0, 5])
def test_the_last_step_has_the_final_fraction(schedule, warmup_steps):
    assert schedule(30, warmup_steps, final_fraction=0.07)(30) == pytest.approx(0.07)


@pytest.mark.parametrize(("num_steps", "warmup_steps"), [(1, 0), (30, 0), (30, 5), (2, 1)])
def test_a_decay_to_zero_takes_no_step_at_a_rate_of_zero(num_steps, warmup_steps):
    """Transformers' linear schedule, which counts from 0, and torchtitan's, with its virtual last step."""
    steps = range(warmup_steps + 1, num_steps + 1)
    left = [(num_steps + 1 - step) / (num_steps + 1 - warmup_steps) for step in steps]
    curves = {
        LinearSchedule: left,
        CosineSchedule: [(1.0 - math.cos(math.pi * part)) / 2.0 for part in left],
    }
    for schedule, expected in curves.items():
        decay = schedule(num_steps, warmup_steps, final_fraction=0.0)
        assert [decay(step) for step in steps] == pytest.approx(expected)
        assert decay(num_steps) > 0.0


def test_a_stable_phase_with_a_decay_to_zero_is_that_of_torchtitan():
    """`linear_warmup_stable_decay` of torchtitan: 0-based steps, and one stable step more than are taken."""
    num_steps, warmup_steps, decay_steps = 40, 8, 20
    decay = WarmupStableDecay(num_steps, warmup_steps, decay_fraction=0.5)
    stable_until = num_steps - decay_steps
    for step in range(stable_until + 1, num_steps + 1):
        assert decay(step) == pytest.approx(1.0 - (step - stable_until) / (decay_steps + 1))
    assert decay(stable_until) == 1.0
    assert decay(num_steps) == pytest.approx(1 / 21)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_may_be_warmup_alone(schedule):
    options = {"decay_fraction": 0.0} if schedule is WarmupStableDecay else {}
    assert [schedule(4, warmup_steps=4, **options)(step) for step in (1, 4)] == [0.25, 1.0]


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        (ConstantSchedule, {"warmup_steps": 11}, r"warmup_steps must be from 0 to Trainer.num_steps \(10\), not 11"),
        (LinearSchedule, {"warmup_steps": -1}, "warmup_steps"),
        (CosineSchedule, {"final_fraction": 1.5}, r"final_fraction must be in \[0, 1\]"),
        (WarmupStableDecay, {"warmup_steps": 6, "decay_fraction": 0.5}, "decay_fraction leaves no room for 6 steps"),
    ],
)
def test_what_does_not_fit_the_run_is_refused(schedule, options, message):
    with pytest.raises(ValueError, match=message):
        schedule(10, **options)
