"""Checkpoints that a run of several processes cannot use or write: what each process is told."""

import errno
import io
import os
import shutil

import pytest
from processes import run_ranks
from quick_trainers import quick_config

from ml.api import build_trainer
from ml.distributed import Layout, World
from ml.errors import OtherProcessFailed, RunFailure, UserError
from ml.training import InitialWeights, RunFolder, train
from ml.training.checkpoints import state_files
from ml.training.checkpoints.atomic_folders import damage

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
    """What a rank is told in each case."""
    pipeline = [*TWO, "Mesh.pipeline = 2"]
    checkpoint = RunFolder(f"{root}/three").checkpoints / "step_6"
    found = {
        "another model": run(world, root, "three of one", pipeline),
        "other weights": run(world, root, "new", pipeline, InitialWeights(checkpoint)),
        "may differ": run(world, root, "newer", pipeline, InitialWeights(checkpoint, ("decoder.block_2.*",))),
        "no such weight": run(world, root, "newest", pipeline, InitialWeights(checkpoint, ("decoder.block_7.*",))),
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
    return found


def fails_at_step_4(original):
    def write(folder, *arguments):
        if ".step_4" in str(folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(folder, *arguments)

    return write


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    (root / "text.txt").write_text("".join(f"{number} squared is {number * number}.\n" for number in range(200)))
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
