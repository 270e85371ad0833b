"""train.py --dry_run for machines that are not there: flags, messages, exit codes and what is saved."""

import os
from pathlib import Path

import pytest
from warm_python import run_python

from ml.cli.memory_size import parse_memory_size

ROOT = Path(__file__).parents[2]
TINY = ("--gin_file=recipes/tiny.gin", "--gin.Trainer.batch_size=8", "--run_dir=run")


@pytest.fixture
def train(tmp_path):
    """Runs train.py in an empty folder; returns the finished process."""

    def run(*arguments, check, **environment):
        done = run_python(ROOT / "train.py", *arguments, cwd=tmp_path, env={**os.environ, **environment})
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == check, done.stdout + done.stderr
        return done

    return run


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--world_size=8"], "--world_size goes with --dry_run"),
        (["--device_memory=24GiB"], "--device_memory goes with --dry_run"),
        (["--dry_run", "--device_memory=lots"], "--device_memory must be a size such as 80GiB, not 'lots'"),
        (["--dry_run", "--world_size=0"], "world_size"),
        (["--dry_run", "--world_size=6"], "Trainer.batch_size (8) is not divisible by the 6 data ranks"),
        (["--dry_run", "--world_size=8", "--gin.Mesh.tensor=3"], "their number must be a multiple of 3"),
        (["--dry_run", "--world_size=8", "--gin.Mesh.pipeline=8"], "blocks cannot be divided into 8 stages"),
    ],
)
def test_wrong_flags_end_with_one_message(train, flags, message):
    assert message in train(*TINY, *flags, check=2).stderr


def test_a_stated_mesh_is_checked_without_its_processes(train):
    shown = train(*TINY, "--dry_run", "--gin.Mesh.tensor=2", "--gin.Mesh.context=2", check=0)
    assert "mesh              4 processes: context 2 x tensor 2" in shown.stdout
    refused = train(*TINY, "--dry_run", "--gin.Mesh.tensor=4", check=2)
    assert "Attention.num_kv_heads (2) is not divisible by Mesh.tensor (4)" in refused.stderr
    experts = train(*TINY, "--dry_run", "--gin.Mesh.expert=2", check=2)
    assert "Mesh.expert is 2, and the model has no MixtureOfExperts" in experts.stderr


def test_a_plan_is_shown_and_not_saved(train, tmp_path):
    plain = train(*TINY, "--dry_run", check=0)
    assert "plan " not in plain.stdout
    assert "Trainer.compile" not in plain.stdout
    saved = (tmp_path / "run" / "operative_config.gin").read_text()
    planned = train(*TINY, "--dry_run", "--world_size=4", "--device_memory=1.5 MiB", check=0)
    assert "4 processes (data_shard 4), a step of 1 micro-batch of 2 sequences on each data rank" in planned.stdout
    assert "fsdp  all-gather" in planned.stdout
    assert "does not fit into 1.5 MiB" in planned.stdout
    assert "not tensor 4" in planned.stdout
    assert (tmp_path / "run" / "operative_config.gin").read_text() == saved


def test_a_pipeline_is_planned_with_its_stage_and_its_bubble(train):
    flags = ("--gin.Mesh.pipeline=2", "--gin.Trainer.micro_batch_size=1", "--device_memory=1GiB")
    shown = train(*TINY, *flags, "--dry_run", "--world_size=2", check=0).stdout
    assert "2 processes (pipeline 2), a step of 8 micro-batches of 1 sequence" in shown
    assert "of 2, which needs most)" in shown
    assert "bubble of the pipeline" in shown
    assert "pipeline  send" in shown
    table = shown[shown.index("tokens/s\n") :]
    assert "pipeline 2" in table


def test_under_a_launcher_the_first_process_checks_the_mesh_of_all(train):
    first, second = (
        train(*TINY, "--dry_run", "--gin.Mesh.tensor=2", check=0, RANK=rank, WORLD_SIZE="2") for rank in "01"
    )
    assert "The configuration is right" in first.stdout
    assert second.stdout == ""
    flags = (*TINY, "--dry_run", "--gin.Mesh.tensor=3")
    assert "does not divide 2 processes" in train(*flags, check=2, RANK="0", WORLD_SIZE="2").stderr


def test_one_device_is_told_its_micro_batches(train):
    shown = train(*TINY, "--dry_run", "--device_memory=12MiB", "--gin.Trainer.compile=True", check=0).stdout
    assert "@SelectiveActivationCheckpointing" in shown
    assert "largest micro_batch_size" in shown
    assert "the time is that without Trainer.compile" in shown


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80GiB", 80 * 2**30),
        ("80 GB", 80 * 10**9),
        ("1.5tib", 3 * 2**39),
        ("100B", 100),
        ("80", None),
        ("0GiB", None),
        ("-1GiB", None),
        ("GiB", None),
        ("5iB", None),
    ],
)
def test_sizes_of_memory(text, size):
    assert parse_memory_size(text) == size
