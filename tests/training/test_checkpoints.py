"""Checkpoints are whole or not there, and damage is noticed."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from ml.training import RunError, RunFailure, RunFolder, state_files
from ml.training.checkpoints import newest_checkpoint
from ml.training.committed import commit, damage


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit_in_the_middle(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def flip_a_bit_at_the_start(file):
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)


def remove(file):
    file.unlink()


def empty(file):
    file.write_bytes(b"")


FILES = ["manifest.json", "model.safetensors", "optimizer.safetensors", "training.json", "operative_config.gin"]
DAMAGES = [truncate, flip_a_bit_in_the_middle, flip_a_bit_at_the_start, remove, empty]


@pytest.fixture
def finished(tiny, run_in, tmp_path):
    """A run with checkpoints at steps 4, 8 and 12."""
    run = RunFolder(tmp_path / "run")
    run.create()
    run.write_config("# set\n", "# operative\n", {"fingerprint": "0"})
    return run_in(tiny())[0]


def test_a_checkpoint_holds_its_files_and_its_configuration(finished):
    checkpoint = finished.checkpoints / "step_8"
    assert sorted(file.name for file in checkpoint.iterdir()) == sorted(FILES)
    assert (checkpoint / "operative_config.gin").read_text() == "# operative\n"
    assert damage(checkpoint) is None


def test_every_kind_of_damage_to_every_file_is_named_and_the_one_before_is_used(finished):
    newest, before = finished.checkpoints / "step_12", finished.checkpoints / "step_8"
    for name in FILES:
        for harm in DAMAGES:
            intact = newest.with_name("intact")
            shutil.copytree(newest, intact)
            harm(newest / name)
            said = []
            assert newest_checkpoint(finished.checkpoints, said.append) == before, (name, harm)
            assert len(said) == 1
            assert str(newest) in said[0]
            shutil.rmtree(newest)
            intact.rename(newest)
    assert newest_checkpoint(finished.checkpoints, pytest.fail) == newest


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_and_replaces_it(finished, tiny, run_in):
    expected = (finished.checkpoints / "step_12/model.safetensors").read_bytes()
    truncate(finished.checkpoints / "step_12/model.safetensors")
    folder, outcome, printed = run_in(tiny())
    assert "step_12: model.safetensors has" in printed
    assert outcome.is_finished
    assert damage(folder.checkpoints / "step_12") is None
    assert (folder.checkpoints / "step_12/model.safetensors").read_bytes() == expected
    assert [record["step"] for record in folder.metrics()] == [1, 2, 4, 5, 6, 8, 10, 12]


def test_a_run_with_no_usable_checkpoint_does_not_start_again_by_itself(finished, tiny, run_in):
    for checkpoint in finished.checkpoints.iterdir():
        truncate(checkpoint / "model.safetensors")
    before = finished.metrics()
    with pytest.raises(RunError, match=r"no checkpoint in .* can be used"):
        run_in(tiny())
    assert finished.metrics() == before


def test_what_a_crash_left_half_written_is_ignored_and_removed(finished, tiny, run_in):
    leftover = finished.checkpoints / ".step_16.tmp"
    shutil.copytree(finished.checkpoints / "step_12", leftover)
    _, outcome, printed = run_in(tiny())
    assert outcome.step == 12
    assert "step_16" not in printed
    assert not leftover.exists()


def test_checkpoints_are_ordered_by_number_and_not_by_name(finished):
    (finished.checkpoints / "step_8").rename(finished.checkpoints / "step_100")
    assert newest_checkpoint(finished.checkpoints, pytest.fail).name == "step_100"


@pytest.mark.parametrize(("keep", "kept"), [(1, {12}), (2, {8, 12}), (None, {4, 8, 12})])
def test_the_newest_are_kept(tiny, run_in, keep, kept):
    folder, _, _ = run_in(tiny(f"Checkpoints.keep = {keep}"))
    assert {path.name for path in folder.checkpoints.iterdir()} == {f"step_{step}" for step in kept}


@pytest.mark.parametrize("call", ["save_file", "fsync", "rename"])
def test_a_full_disk_is_a_clear_message_and_leaves_the_last_checkpoint(tiny, run_in, monkeypatch, call):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fails_at_step_8(original, is_step_8):
        def call(*arguments):
            if is_step_8(*arguments):
                raise full
            return original(*arguments)

        return call

    if call == "save_file":
        broken = fails_at_step_8(state_files.save_file, lambda tensors, file: ".step_8" in str(file))
        monkeypatch.setattr(state_files, "save_file", broken)
    elif call == "fsync":
        in_step_8 = lambda descriptor: ".step_8" in os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: E731
        monkeypatch.setattr(os, "fsync", fails_at_step_8(os.fsync, in_step_8))
    else:
        monkeypatch.setattr(Path, "rename", fails_at_step_8(Path.rename, lambda path, _: path.name == ".step_8.tmp"))
    with pytest.raises(RunFailure, match=r"step 8 could not .* No space left .* the one of step 4 is untouched"):
        run_in(tiny())
    monkeypatch.undo()
    folder, outcome, printed = run_in(tiny())
    assert f"resuming from {folder.checkpoints / 'step_4'}" in printed
    assert outcome.is_finished
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step_12", "step_4", "step_8"]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path):
    def write(folder):
        (folder / "half").write_text("x")
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        commit(tmp_path / "step_1", write)
    assert list(tmp_path.iterdir()) == []
