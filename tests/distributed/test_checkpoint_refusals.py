"""Checkpoints that a run of several processes cannot use or write: what each process is told."""

import errno
import io
import os
import shutil
import signal

import pytest
from distributed_runs import squares
from processes import run_ranks
from quick_trainers import quick_config

from ml.api import build_trainer
from ml.distributed import Layout, World
from ml.errors import OtherProcessFailed, RunFailure, UserError
from ml.training import FromRun, RunFolder, train
from ml.training.checkpoints import state_files
from ml.training.checkpoints.atomic_folders import damage
from ml.training.ending import Ending

TINY = """
LanguageModel.vocab_size = 256
LanguageModel.hidden_size = 16
LanguageModel.tie_word_embeddings = False
Attention.num_heads = 2
Trainer.batch_size = 4
Trainer.micro_batch_size = 1
Trainer.sequence_length = 16
Trainer.validation = None
Trainer.num_steps = 6
CosineSchedule.warmup_steps = 2
Checkpoints.every = 2
Checkpoints.keep = None
"""
VALIDATED = ["Trainer.validation = @Validation", "Validation.every = 4", "Validation.num_tokens = 200"]
TWO, THREE = ["decoder/Repeat.num_blocks = 2"], ["decoder/Repeat.num_blocks = 3"]


def run(world, root, name, bindings, initial=None):
    """Trains in a folder, and returns what is printed or the kind of error and its message."""
    trainer = build_trainer(quick_config([TINY, f"TextFiles.paths = '{root}/text.txt'", *bindings]))
    layout, stream = Layout.of(world, trainer.mesh_sizes(world.size)), io.StringIO()
    folder = RunFolder(f"{root}/{name}")
    try:
        train(trainer, trainer.open_data(), folder, world.device, initial=initial, layout=layout, stream=stream)
    except (RunFailure, UserError, OtherProcessFailed) as error:
        return type(error).__name__, str(error)
    return stream.getvalue()


def told(world, root):
    """Returns the error of a rank in each case."""
    pipeline = [*TWO, "Mesh.pipeline = 2"]

    def start(*may_differ):
        return FromRun(path=f"{root}/three", step=6, may_differ=may_differ).open(world)

    found = {
        "another model": run(world, root, "three of one", pipeline),
        "other weights": run(world, root, "new", pipeline, start()),
        "may differ": run(world, root, "newer", pipeline, start("decoder.block_2.*")),
        "no such weight": run(world, root, "newest", pipeline, start("decoder.block_7.*")),
    }
    original = state_files.write_tensors
    if world.rank == 1:
        state_files.write_tensors = fails_at_step_4(original)
    found["full disk"] = run(world, root, "full", TWO)
    state_files.write_tensors = original
    if world.is_first:
        damaged = RunFolder(f"{root}/full").checkpoints / "step_2/__1_0.distcp"
        shutil.copytree(damaged.parent, damaged.parents[1] / "step_3")  # one that is damaged in a file of rank 1
        os.truncate(damaged.parents[1] / "step_3/__1_0.distcp", 100)
    found["next start"] = run(world, root, "full", TWO)
    if world.rank == 1:
        Ending.stops = lambda self: self.state.step == 4  # asked to stop in the validation
    found["interrupted"] = run(world, root, "interrupted", [*TWO, *VALIDATED])
    return found


def killed_in_a_save(world, root):
    """Trains until rank 1 is killed while it writes step 4."""
    original = state_files.write_tensors
    if world.rank == 1:
        state_files.write_tensors = lambda folder, *others: (
            os.kill(os.getpid(), signal.SIGKILL) if ".step_4" in str(folder) else original(folder, *others)
        )
    try:
        return str(run(world, root, "killed", TWO))
    except RuntimeError as error:  # gloo's own, wherever the other process is missing
        return str(error)


def fails_at_step_4(original):
    def write(folder, *arguments):
        if ".step_4" in str(folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(folder, *arguments)

    return write


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    (root / "text.txt").write_text(squares(200))
    run(World(), root, "three", THREE)
    shutil.copytree(root / "three", root / "three of one")
    return root, run_ranks(2, told, str(root))


def test_every_rank_is_told_of_a_checkpoint_of_another_model(ranks):
    _, (first, second) = ranks
    for case in ("another model", "other weights"):
        kind, message = first[case]
        assert kind == "RunError"
        assert "is of another model:\n  not expected:\n" in message
        assert "decoder.block_2" in message
        assert "block_0" not in message  # held by rank 0
        assert "block_1" not in message  # held by rank 1
        assert second[case] == ("OtherProcessFailed", f"rank 0: {message}")
    kind, message = first["no such weight"]
    assert kind == "RunError"
    assert "no weight matches 'decoder.block_7.*'" in message
    assert second["no such weight"] == ("OtherProcessFailed", f"rank 0: {message}")
    assert "starting from the weights of" in first["may differ"]
    assert "trained to step 6" in first["may differ"]


def test_a_rank_with_a_full_disk_ends_the_run_and_the_next_one_resumes(ranks):
    root, (first, second) = ranks
    checkpoints = root / "full/checkpoints"
    kind, message = first["full disk"]
    assert kind == "RunFailure"
    assert message == (
        f"the checkpoint of step 4 could not be written to {checkpoints}: No space left on device; "
        "the one of step 2 is untouched"
    )
    assert second["full disk"] == ("OtherProcessFailed", f"rank 0: {message}")
    assert f"skipping checkpoint {checkpoints / 'step_3'}: __1_0.distcp has 100 bytes" in first["next start"]
    assert f"resuming from {checkpoints / 'step_2'}" in first["next start"]
    assert second["next start"] == ""
    assert [record["step"] for record in RunFolder(root / "full").metrics()] == [1, 6]
    assert {path.name for path in checkpoints.iterdir() if damage(path) is None} == {"step_2", "step_4", "step_6"}


def test_an_interrupted_validation_is_repeated_by_a_run_on_another_mesh(ranks):
    root, (first, second) = ranks
    assert "stopped after step 4 of 6 and saved" in first["interrupted"]
    assert second["interrupted"] == ""
    run(World(), root, "whole", [*TWO, *VALIDATED])
    assert "trained to step 6" in run(World(), root, "interrupted", [*TWO, *VALIDATED])
    expected, found = (RunFolder(root / name).metrics() for name in ("whole", "interrupted"))
    assert [record["step"] for record in found] == [record["step"] for record in expected] == [1, 4, 6]
    for record, wanted in zip(found, expected, strict=True):
        losses = {name: value for name, value in wanted.items() if name.endswith("loss")}
        assert {name: record[name] for name in losses} == pytest.approx(losses, rel=1e-5)


def test_one_process_resumes_a_run_of_which_a_rank_was_killed_in_a_save(ranks):
    root, _ = ranks
    problem, _ = run_ranks(2, killed_in_a_save, str(root), killed=[1])
    assert problem
    assert "trained to" not in problem
    printed = run(World(), root, "killed", TWO)
    checkpoints = root / "killed/checkpoints"
    assert f"resuming from {checkpoints / 'step_2'}" in printed
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step_2", "step_4", "step_6"]
    assert [record["step"] for record in RunFolder(root / "killed").metrics()] == [1, 6]
