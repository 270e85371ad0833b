"""Checkpoints of the best validation, and the end of a run that no longer improves."""

import pytest
from saved import saved_bits
from test_resume import stop_after

from ml.config import ConfigError
from ml.training import RunError, loop
from ml.training.checkpoints.policy import open_checkpoint
from ml.training.checkpoints.state_files import read_counts
from ml.training.evaluation.lowest import Lowest
from ml.training.evaluation.validation import Validation, ValidationResult

EVERY_TWO = ["Validation.every = 2", "Checkpoints.every = 4", "Checkpoints.keep = 1"]
BEST = [*EVERY_TWO, "Checkpoints.keep_best = 'validation_loss'"]
EARLY = [*EVERY_TWO, "Trainer.early_stopping = @EarlyStopping", "EarlyStopping.patience = 2"]


@pytest.fixture
def validated_as(monkeypatch):
    """Replaces the measured losses by chosen ones, by step; the bits per byte fall in every validation."""

    def choose(losses):
        def measure(self, model, dataset, batch_size, precision, device, stop, layout, guide):
            step = asked.state.step
            return ValidationResult(losses[step], 10.0 - step)

        asked = None
        begin = loop.TrainLoop.__init__

        def remember(self, *arguments):
            nonlocal asked
            begin(self, *arguments)
            asked = self

        monkeypatch.setattr(loop.TrainLoop, "__init__", remember)
        monkeypatch.setattr(Validation, "measure", measure)

    return choose


def steps_kept(folder):
    return sorted(read_counts(path)["step"] for path in folder.checkpoints.iterdir())


@pytest.mark.parametrize(
    "losses", [[9, 8, 7, 6, 5, 4], [1, 2, 3, 4, 5, 6], [5, 3, 4, 2, 6, 7], [5, 3, 3, 3, 3, 3]], ids=str
)
def test_the_checkpoint_of_the_best_validation_is_kept_beside_the_newest(tiny, run_in, validated_as, losses):
    by_step = dict(zip(range(2, 14, 2), losses, strict=True))
    best = min(by_step, key=by_step.get)  # the first of equal ones
    validated_as(by_step)
    folder, _, _ = run_in(tiny(*BEST))
    assert steps_kept(folder) == sorted({best, 12})
    assert read_counts(open_checkpoint(folder.checkpoints, "best"))["step"] == best


def test_the_best_checkpoint_is_that_of_a_run_that_was_stopped_at_any_step(tiny, run_in, validated_as, monkeypatch):
    losses = dict(zip(range(2, 14, 2), [5, 3, 4, 2, 6, 7], strict=True))
    validated_as(losses)
    undisturbed, _, _ = run_in(tiny(*BEST), "undisturbed")
    for step in (3, 7, 8, 9):
        with monkeypatch.context() as patch:
            stop_after(patch, step)
            run_in(tiny(*BEST), f"stopped_{step}")
        resumed, _, _ = run_in(tiny(*BEST), f"stopped_{step}")
        assert steps_kept(resumed) == steps_kept(undisturbed) == [8, 12]
        assert saved_bits(resumed.checkpoints / "step_8") == saved_bits(undisturbed.checkpoints / "step_8")


def test_a_real_run_keeps_the_minimum_of_its_metrics(tiny, run_in):
    folder, _, _ = run_in(tiny(*BEST, "AdamW.learning_rate = 0.3", "Trainer.schedule = @ConstantSchedule"))
    losses = {record["step"]: record["validation_loss"] for record in folder.metrics() if "validation_loss" in record}
    assert len(losses) == 6
    assert steps_kept(folder) == sorted({min(losses, key=losses.get), 12})


def test_without_a_best_checkpoint_the_message_names_the_option(tiny, run_in):
    folder, _, _ = run_in(tiny(*EVERY_TWO))
    with pytest.raises(RunError, match=r"set Checkpoints\.keep_best"):
        open_checkpoint(folder.checkpoints, "best")


@pytest.mark.parametrize(
    ("losses", "end"),
    [([6, 5, 4, 3, 2, 1], 12), ([1, 2, 3, 4, 5, 6], 6), ([5, 6, 4, 4, 4, 1], 10), ([5, 6, 4, 7, 3, 8], 12)],
    ids=str,
)
def test_a_run_ends_after_validations_without_an_improvement(tiny, run_in, validated_as, monkeypatch, losses, end):
    validated_as(dict(zip(range(2, 14, 2), losses, strict=True)))
    folder, outcome, printed = run_in(tiny(*EARLY))
    assert outcome == (end, True)
    assert steps_kept(folder) == [end]
    if end < 12:
        lowest = 2 * losses.index(min(losses[: end // 2])) + 2
        assert f"trained to step {end} of 12, because validation_loss was lowest at step {lowest}" in printed
    monkeypatch.setattr(loop, "train_step", lambda *_: pytest.fail("a step was taken after the end"))
    assert run_in(tiny(*EARLY))[1] == (end, True)


def test_a_stop_does_not_change_where_a_run_ends(tiny, run_in, validated_as, monkeypatch):
    validated_as(dict(zip(range(2, 14, 2), [5, 6, 4, 4, 4, 1], strict=True)))
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        assert run_in(tiny(*EARLY))[1] == (9, False)
    assert run_in(tiny(*EARLY))[1] == (10, True)


def test_small_improvements_and_values_that_are_not_finite_count_as_none():
    lowest = Lowest("loss", min_improvement=0.5)
    for step, value in enumerate([3.0, 2.6, 2.4, float("nan"), None, 1.8], 1):
        lowest.update({"step": step, "loss": value})
    assert (lowest.value, lowest.step, lowest.num_since) == (1.8, 6, 0)
    lowest.update({"step": 7, "other": 0.0})  # not validated
    lowest.update({"step": 8, "loss": 1.4})
    assert (lowest.value, lowest.step, lowest.num_since) == (1.8, 6, 1)


def test_a_metric_that_is_not_measured_is_an_error_that_lists_those_that_are(tiny):
    with pytest.raises(ConfigError, match=r"'validation_loss', which is not .*validation_books_loss, .*_bits_per_byte"):
        tiny("Trainer.validation = {'books': @Validation}", "Checkpoints.keep_best = 'validation_loss'")
    average = "Trainer.weight_average = @ExponentialMovingAverage"
    with pytest.raises(ConfigError, match=r"'loss', which is not measured; .* average_validation_loss"):
        tiny(average, "Trainer.early_stopping = @EarlyStopping", "EarlyStopping.metric = 'loss'")
    with pytest.raises(ConfigError, match=r"needs Trainer\.validation"):
        tiny("Trainer.validation = None", "Trainer.early_stopping = @EarlyStopping")


def test_checkpoints_by_time(tiny, run_in):
    by_time = ["Checkpoints.every = None", "Checkpoints.keep = None"]
    always, _, _ = run_in(tiny(*by_time, "Checkpoints.every_minutes = 1e-9"), "always")
    assert steps_kept(always) == list(range(1, 13))
    never, _, _ = run_in(tiny(*by_time, "Checkpoints.every_minutes = 1e9"), "never")
    assert steps_kept(never) == [12]
    assert saved_bits(never.checkpoints / "step_12") == saved_bits(always.checkpoints / "step_12")
