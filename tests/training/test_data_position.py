"""The position in the data of a resumed run: the count of consumed sequences, whatever the batch size was."""

import json
import shutil

import pytest

from ml.data.datasets.token_dataset import TokenDataset
from ml.training.checkpoints.atomic_folders import publish, sealed, temporary
from ml.training.checkpoints.state_files import read_counts
from ml.training.run_data import RunData


@pytest.fixture
def taken(monkeypatch):
    """The indices of the training sequences that were read, in order."""
    indices, read = [], TokenDataset.batch

    def batch(self, first, count):
        indices.extend(range(first, first + count))
        return read(self, first, count)

    monkeypatch.setattr(TokenDataset, "batch", batch)
    monkeypatch.setattr(RunData, "order_sha256", lambda self: None)  # which reads the first ones at every start
    return indices


def without_position(checkpoint):
    """Rewrites a checkpoint as it was before sequences were counted."""
    hidden = temporary(checkpoint)
    shutil.copytree(checkpoint, hidden)
    counts = read_counts(checkpoint)
    del counts["sequences"]
    (hidden / "training.json").write_text(json.dumps(counts))
    (hidden / "operative_config.gin").write_text("Trainer.batch_size = 4\nTrainer.num_steps = 12\n")
    publish(checkpoint, sealed([file for file in hidden.iterdir() if file.name not in ("manifest.json", "COMMITTED")]))


def test_a_changed_batch_size_continues_at_the_first_sequence_that_was_not_trained(tiny, run_in, taken):
    run_in(tiny("Trainer.num_steps = 5", "Trainer.num_loader_workers = 0"))
    assert taken == list(range(20))
    for num_steps, batch_size, end in [(8, 2, 26), (10, 6, 38)]:
        changed = [f"Trainer.num_steps = {num_steps}", f"Trainer.batch_size = {batch_size}"]
        folder, _, _ = run_in(tiny(*changed, "Trainer.num_loader_workers = 0"))
        assert taken == list(range(end))
        assert read_counts(folder.checkpoints / f"step_{num_steps}")["sequences"] == end


def test_a_checkpoint_that_does_not_count_sequences_had_one_batch_size(tiny, run_in, taken):
    folder, _, _ = run_in(tiny("Trainer.num_steps = 8"), "old")
    without_position(folder.checkpoints / "step_8")
    run_in(tiny("Trainer.num_loader_workers = 0"), "old")
    assert taken == list(range(48))
    assert read_counts(folder.checkpoints / "step_12")["sequences"] == 48
