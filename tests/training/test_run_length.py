"""Steps of a number of epochs, against a count of batches."""

import itertools

import pytest

from ml.config import ConfigError
from ml.training.errors import RunError
from ml.training.run_length import RunLength


@pytest.mark.parametrize(
    ("num_epochs", "sequences", "batch_size", "expected"),
    [
        (1.0, 10, 5, 2),
        (1.0, 10, 4, 3),
        (3.0, 130, 4, 98),
        (0.1, 30, 1, 3),
        (0.7, 10, 1, 7),
        (1e-9, 9, 4, 1),
        (2, 1, 8, 1),
    ],
)
def test_the_steps_are_the_fewest_whose_batches_have_the_epochs(num_epochs, sequences, batch_size, expected):
    assert RunLength.of(None, num_epochs, sequences, batch_size).num_steps == expected


def test_steps_after_others_complete_the_epochs():
    """Against steps taken one by one: 3 of 4 sequences, then batches of 7."""
    length = RunLength.of(None, 2.5, 20, 7)
    seen = 3 * 4
    for step in itertools.count(3):
        if seen >= 2.5 * 20:
            assert length.steps_after(3, 12, 7) == step
            break
        seen += 7
    assert length.steps_after(30, 120, 7) == 30  # they are complete: no step is left


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        (["Trainer.num_epochs = 2"], r"Trainer.num_epochs and num_steps \(12\) cannot both be set"),
        (["Trainer.num_steps = None"], "Trainer.num_steps must be set, or Trainer.num_epochs"),
        (["Trainer.num_steps = None", "Trainer.num_epochs = 0.0"], "Trainer.num_epochs must be positive"),
        (["Trainer.epoch_sequences = 5"], "Trainer.epoch_sequences goes with Trainer.num_epochs"),
        (["Trainer.num_steps = None", "Trainer.num_epochs = 1", "Trainer.epoch_sequences = 0"], "must be positive"),
        (
            ["Trainer.num_steps = None", "Trainer.num_epochs = 1", "Trainer.epoch_sequences = 8"],
            r"warmup_steps must be from 0 to Trainer.num_steps \(2\)",
        ),
    ],
)
def test_exactly_one_of_steps_and_epochs_is_set_and_the_rest_fits_the_steps(tiny, bindings, message):
    with pytest.raises(ConfigError, match=message):
        tiny(*bindings)


def test_a_run_of_unknown_length_is_not_trained(tiny, run_in):
    trainer = tiny("Trainer.num_steps = None", "Trainer.num_epochs = 1")
    assert not trainer.length.is_known
    with pytest.raises(RunError, match=r"num_epochs needs Trainer\.epoch_sequences"):
        run_in(trainer)
