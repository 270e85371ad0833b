"""Reading a run that is training: checkpoints are removed, and no reader fails."""

import contextlib
import os
import random
import shutil
import threading
import time

import pytest
import torch

from ml.distributed import ALONE
from ml.training import RunError
from ml.training.checkpoints import holding, policy
from ml.training.checkpoints.atomic_folders import damage
from ml.training.checkpoints.policy import Checkpoints, newest_checkpoint, open_checkpoint, using_checkpoint
from ml.training.checkpoints.state_files import Snapshot, read_counts
from ml.training.checkpoints.tensor_files import read_tensors, tensor_shapes

COUNTS = {"tokens": 0, "seconds": 0.0, "data_sha256": "", "unvalidated": None, "untouched": []}


def snapshot(step):
    """Tensors whose values tell the step."""
    tensors = {f"model/{name}": torch.full((50, 40), float(step)) for name in "abcd"}
    return Snapshot(step, tensors, COUNTS | {"step": step}, None)


@contextlib.contextmanager
def saver_of(folder, **options):
    options = {"every": 1, "keep": 1, "asynchronous": False} | options
    with contextlib.closing(Checkpoints(**options).open(folder, lambda: None, ALONE)) as saver:
        yield saver


@contextlib.contextmanager
def training_in(folder):
    """A thread that saves and prunes in a loop; at least one checkpoint is there from the beginning."""
    ended, begun, problems = threading.Event(), threading.Event(), []

    def save():
        try:
            with saver_of(folder) as saver:
                step = 0
                while not ended.is_set():
                    step += 1
                    saver.save(snapshot(step))
                    begun.set()
        except Exception as error:
            problems.append(error)
            begun.set()

    thread = threading.Thread(target=save)
    thread.start()
    begun.wait()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert not problems


def read(checkpoint):
    """The step of all tensors and counts of a checkpoint, which must be of one step."""
    tensors = {name: torch.empty(shape.shape) for name, shape in tensor_shapes(checkpoint).items()}
    read_tensors(checkpoint, tensors)
    values = set(torch.cat([tensor.flatten() for tensor in tensors.values()]).tolist())
    assert values == {float(read_counts(checkpoint)["step"])}
    return values.pop()


@pytest.fixture
def without_locks(monkeypatch):
    """A file system on which every lock is an error."""
    monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError("no locks available")))


def read_often(folder):
    steps, ends = [], time.monotonic() + 60.0
    with training_in(folder):
        while len(set(steps)) < 40 and time.monotonic() < ends:
            steps.append(using_checkpoint(folder, None, read))
    assert steps == sorted(steps)
    assert len(set(steps)) > 2, "the test must read while checkpoints are removed"


def test_reading_the_newest_checkpoint_never_fails_while_they_are_pruned(tmp_path):
    read_often(tmp_path)


def test_nor_does_it_on_a_file_system_without_locks(tmp_path, without_locks):
    read_often(tmp_path)


def test_a_checkpoint_by_its_step_is_read_as_a_whole_or_is_not_there(tmp_path):
    chance, found = random.Random(0), 0
    with training_in(tmp_path):
        for _ in range(60):
            step = read_counts_of_newest(tmp_path) + chance.randint(-1, 1)
            with contextlib.suppress(policy.NoCheckpoint):
                assert using_checkpoint(tmp_path, step, read) == step
                found += 1
    assert found


def read_counts_of_newest(folder):
    return using_checkpoint(folder, None, read_counts)["step"]


def test_a_checkpoint_that_is_read_is_removed_by_a_later_save(tmp_path):
    with saver_of(tmp_path) as saver:
        saver.save(snapshot(1))

        def use(checkpoint):
            saver.save(snapshot(2))
            assert damage(checkpoint) is None
            return checkpoint

        assert using_checkpoint(tmp_path, 1, use) == tmp_path / "step_1"
        assert {path.name for path in tmp_path.iterdir()} == {"step_1", "step_2"}
        saver.save(snapshot(3))
        assert {path.name for path in tmp_path.iterdir()} == {"step_3"}


def test_an_error_in_reading_a_checkpoint_that_stays_is_raised(tmp_path):
    with saver_of(tmp_path) as saver:
        saver.save(snapshot(1))

    def fail(checkpoint):
        raise RunError("of another model")

    with pytest.raises(RunError, match="of another model"):
        using_checkpoint(tmp_path, None, fail)


def test_a_reader_makes_nothing_where_a_checkpoint_was(tmp_path):
    with holding.held(tmp_path / "step_1") as is_there:
        assert not is_there
    assert holding.remove_unless_held(tmp_path / "step_1")
    assert not list(tmp_path.iterdir())


def test_the_remains_of_an_interrupted_removal_are_removed_without_a_word(tmp_path, monkeypatch):
    with saver_of(tmp_path) as saver, monkeypatch.context() as crash:
        saver.save(snapshot(1))
        crash.setattr("shutil.rmtree", lambda *_, **__: None)
        saver.save(snapshot(2))
    assert {path.name for path in tmp_path.iterdir()} == {"step_2", ".step_1.removed"}
    assert newest_checkpoint(tmp_path, pytest.fail) == tmp_path / "step_2"
    assert {path.name for path in tmp_path.iterdir()} == {"step_2"}


def lose_a_file(checkpoint):
    (checkpoint / ".metadata").unlink()


def cut(checkpoint):
    os.truncate(checkpoint / "__0_0.distcp", 10)


def lose_the_marker(checkpoint):
    (checkpoint / "COMMITTED").unlink()


def empty(checkpoint):
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


def flip_a_bit(checkpoint):
    """Only hashes show this damage, which a run computes when it resumes."""
    content = bytearray((checkpoint / "__0_0.distcp").read_bytes())
    content[500] ^= 1
    (checkpoint / "__0_0.distcp").write_bytes(content)


@pytest.mark.parametrize("harm", [lose_a_file, cut, lose_the_marker, empty, flip_a_bit])
def test_damaged_checkpoints_take_no_place_of_those_that_are_kept(tmp_path, harm):
    with saver_of(tmp_path, keep=2) as saver:
        for step in (10, 20):
            saver.save(snapshot(step))
    harm(tmp_path / "step_20")
    with saver_of(tmp_path, keep=2) as saver:
        saver.resume(10)
        saver.save(snapshot(15))
        valid = [step for step in (10, 15) if damage(tmp_path / f"step_{step}") is None]
        assert valid == [10, 15]
        for step, kept in [(19, {15, 19, 20}), (21, {19, 20, 21}), (22, {21, 22})]:
            saver.save(snapshot(step))
            assert {path.name for path in tmp_path.iterdir()} == {f"step_{step}" for step in kept}


def test_a_damaged_checkpoint_that_is_written_again_counts(tmp_path):
    with saver_of(tmp_path, keep=2) as saver:
        for step in (10, 20):
            saver.save(snapshot(step))
        flip_a_bit(tmp_path / "step_20")
        saver.resume(10)
        for step in (20, 30):
            saver.save(snapshot(step))
    assert {path.name for path in tmp_path.iterdir()} == {"step_20", "step_30"}


def test_the_best_checkpoint_is_found_while_they_are_pruned(tmp_path):
    lowest = {"metric": "loss", "min_improvement": 0.0, "value": 1.0, "step": 1, "num_since": 0}
    best = {"lowest": {"best_validation": lowest}}
    with saver_of(tmp_path) as saver:
        for step in (1, 2, 3):
            taken = snapshot(step)
            saver.save(taken._replace(counts=taken.counts | best))
    assert open_checkpoint(tmp_path, policy.BEST) == tmp_path / "step_1"
