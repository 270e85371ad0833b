"""Checkpoints are complete or absent, and damage is detected."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from saved import saved_bits

from ml.training import RunError, RunFailure, RunFolder
from ml.training.checkpoints import state_files
from ml.training.checkpoints.atomic_folders import begin, damage, discard, temporary
from ml.training.checkpoints.policy import newest_checkpoint


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def flips_a_bit_at(place):
    def flip(file):
        content = bytearray(file.read_bytes())
        content[int(place * (len(content) - 1))] ^= 1
        file.write_bytes(content)

    flip.__name__ = f"flip_a_bit_at_{place}"
    return flip


def append(file):
    file.write_bytes(file.read_bytes() + b"\0")


def take_that_of_another(file):
    """As when two checkpoints are mixed up in copying them."""
    shutil.copyfile(file.parent.with_name("step_4") / file.name, file)


def remove(file):
    file.unlink()


def empty(file):
    file.write_bytes(b"")


FILES = ["COMMITTED", "manifest.json", ".metadata", "__0_0.distcp", "training.json", "operative_config.gin"]
DAMAGES = [truncate, append, remove, empty, take_that_of_another, *map(flips_a_bit_at, (0.0, 0.25, 0.5, 0.75, 1.0))]


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


def test_every_kind_of_damage_to_every_file_is_named_and_the_one_before_is_used(finished, tmp_path):
    newest, before = finished.checkpoints / "step_12", finished.checkpoints / "step_8"
    for name in FILES:
        for harm in DAMAGES:
            intact = tmp_path / "intact"
            shutil.copytree(newest, intact)
            was = (newest / name).read_bytes()
            harm(newest / name)
            if (newest / name).exists() and (newest / name).read_bytes() == was:
                assert (name, harm) == ("operative_config.gin", take_that_of_another)  # the same in every checkpoint
                shutil.rmtree(intact)
                continue
            said = []
            assert newest_checkpoint(finished.checkpoints, said.append) == before, (name, harm)
            assert len(said) == 1
            assert str(newest) in said[0]
            shutil.rmtree(newest)
            intact.rename(newest)
    assert newest_checkpoint(finished.checkpoints, pytest.fail) == newest


def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one_and_replaces_it(finished, tiny, run_in):
    expected = saved_bits(finished.checkpoints / "step_12")
    truncate(finished.checkpoints / "step_12/__0_0.distcp")
    folder, outcome, printed = run_in(tiny())
    assert "step_12: __0_0.distcp has" in printed
    assert outcome.is_finished
    assert damage(folder.checkpoints / "step_12") is None
    assert saved_bits(folder.checkpoints / "step_12") == expected
    assert [record["step"] for record in folder.metrics()] == [1, 2, 4, 5, 6, 8, 10, 12]


def test_a_run_with_no_usable_checkpoint_does_not_start_again_by_itself(finished, tiny, run_in):
    for checkpoint in finished.checkpoints.iterdir():
        truncate(checkpoint / "__0_0.distcp")
    before = finished.metrics()
    with pytest.raises(RunError, match=r"no checkpoint in .* can be used"):
        run_in(tiny())
    assert finished.metrics() == before


def test_an_unfinished_write_of_a_crash_is_named_and_removed(finished, tiny, run_in):
    leftover = finished.checkpoints / ".step_16.tmp"
    shutil.copytree(finished.checkpoints / "step_12", leftover)
    _, outcome, printed = run_in(tiny())
    assert outcome.step == 12
    assert f"skipping checkpoint {leftover.with_name('step_16')}: it was never finished" in printed
    assert not leftover.exists()


def test_the_newest_is_the_one_of_the_last_step_whatever_it_is_called(finished):
    (finished.checkpoints / "step_8").rename(finished.checkpoints / "step_100")
    (finished.checkpoints / "step_12").rename(finished.checkpoints / "before_the_spike")
    assert newest_checkpoint(finished.checkpoints, pytest.fail).name == "before_the_spike"


@pytest.mark.parametrize(
    ("keep", "keep_every", "kept"),
    [
        (1, None, {12}),
        (2, None, {9, 12}),
        (None, None, {3, 6, 9, 12}),
        (1, 6, {6, 12}),
        (1, 5, {12}),
        (2, 3, {3, 6, 9, 12}),
    ],
)
def test_the_newest_are_kept_and_every_nth(tiny, run_in, keep, keep_every, kept):
    bindings = (f"Checkpoints.keep = {keep}", f"Checkpoints.keep_every = {keep_every}", "Checkpoints.every = 3")
    folder, _, _ = run_in(tiny(*bindings))
    assert {path.name for path in folder.checkpoints.iterdir()} == {f"step_{step}" for step in kept}


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("call", ["write_tensors", "fsync", "rename"])
def test_a_full_disk_is_a_clear_message_and_leaves_the_last_checkpoint(tiny, run_in, monkeypatch, call, asynchronous):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fails_at_step_8(original, is_step_8):
        def call(*arguments):
            if is_step_8(*arguments):
                raise full
            return original(*arguments)

        return call

    if call == "write_tensors":
        broken = fails_at_step_8(state_files.write_tensors, lambda folder, *_: ".step_8" in str(folder))
        monkeypatch.setattr(state_files, "write_tensors", broken)
    elif call == "fsync":
        in_step_8 = lambda descriptor: ".step_8" in os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: E731
        monkeypatch.setattr(os, "fsync", fails_at_step_8(os.fsync, in_step_8))
    else:
        monkeypatch.setattr(Path, "rename", fails_at_step_8(Path.rename, lambda path, _: path.name == ".step_8.tmp"))
    with pytest.raises(RunFailure, match=r"step 8 could not .* No space left .* the one of step 4 is untouched"):
        run_in(tiny(f"Checkpoints.asynchronous = {asynchronous}"))
    monkeypatch.undo()
    folder, outcome, printed = run_in(tiny())
    assert f"resuming from {folder.checkpoints / 'step_4'}" in printed
    assert outcome.is_finished
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step_12", "step_4", "step_8"]


def test_a_failed_write_leaves_no_files(tmp_path):
    begin(tmp_path / "step_1")
    (temporary(tmp_path / "step_1") / "half").write_text("x")
    discard(tmp_path / "step_1")
    assert list(tmp_path.iterdir()) == []
