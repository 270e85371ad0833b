"""Stopping at a step or after a time, without bending the schedule."""

import pytest
from saved import saved_bits, untimed

from ml.config import ConfigError
from ml.training.durations import parse_duration


def test_a_run_stopped_at_steps_is_bitwise_the_run_that_was_not(tiny, run_in):
    undisturbed, _, _ = run_in(tiny(), "undisturbed")
    stopped, outcome, printed = run_in(tiny("Trainer.stop_at_step = 5"), "stopped")
    assert outcome == (5, False)
    assert (
        "stopped after step 5 of 12 (Trainer.stop_at_step = 5) and saved; the same command with --run_dir=" in printed
    )
    assert "and a later step to stop at resumes from there" in printed
    assert run_in(tiny("Trainer.stop_at_step = 5"), "stopped")[1] == (5, False)
    assert run_in(tiny("Trainer.stop_at_step = 7"), "stopped")[1] == (7, False)
    stopped, outcome, _ = run_in(tiny("Trainer.stop_at_step = 99"), "stopped")
    assert outcome == (12, True)
    ours, theirs = (saved_bits(folder.checkpoints / "step_12") for folder in (stopped, undisturbed))
    assert ours == theirs
    assert untimed(stopped.metrics()) == untimed(undisturbed.metrics())


def test_a_run_stops_after_a_time_with_a_checkpoint(tiny, run_in):
    folder, outcome, printed = run_in(tiny("Trainer.stop_after = '0.5s'", "Trainer.num_steps = 1000000"))
    assert 0 < outcome.step < 1000000
    assert not outcome.is_finished
    assert f"stopped after step {outcome.step} of 1000000 (Trainer.stop_after) and saved" in printed
    assert (folder.checkpoints / f"step_{outcome.step}").is_dir()


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90.0), ("1h30m", 5400.0), ("0.5d", 43200.0), ("3h", 10800.0)])
def test_durations(text, seconds):
    assert parse_duration("stop_after", text) == seconds


@pytest.mark.parametrize("text", ["3", "h", "3 h", "3x", "", "0s", "-3h"])
def test_what_is_no_duration_is_refused(tiny, text):
    with pytest.raises(ConfigError, match=r"Trainer.stop_after must be a duration such as '90m'"):
        tiny(f"Trainer.stop_after = {text!r}")
