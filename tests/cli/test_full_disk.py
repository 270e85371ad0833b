"""A full disk is reported in words by every command that writes."""

import os
import resource
import shutil
from pathlib import Path

import pytest

from ml.cli import train
from ml.cli.verbs import main
from ml.files import reason_of

TEXT = "".join(f"{n} times {n} is {n * n}.\n" for n in range(2000))
TINY = [
    "--gin_file=recipes/tiny.gin",
    "--gin.Trainer.num_steps=2",
    "--gin.CosineSchedule.warmup_steps=1",
    "--gin.Trainer.validation=None",
    "--gin.TextFiles.paths='text.txt'",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    (folder / "text.txt").write_text(TEXT)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert call("train", *TINY, "--run_dir=run") == 0
    finally:
        os.chdir(before)
    return folder


def call(*arguments):
    try:
        return train.main(list(arguments[1:])) if arguments[0] == "train" else main(list(arguments))
    except SystemExit as left:
        return left.code


@pytest.fixture
def work(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def limit():
    """Limits the size of files that this process writes, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


COMMANDS = {
    "the configuration": (["train", *TINY, "--run_dir=new"], 1000),
    "a dry run": (["train", *TINY, "--dry_run", "--run_dir=new"], 1000),
    "a checkpoint": (["train", *TINY, "--run_dir=new"], 300_000),
    "an export": (["export", "run", "weights.safetensors"], 1000),
    "a picture": (["plot", "run"], 1000),
    "tokens": (["prepare", "text.txt", "--tokenizer=ByteTokenizer", "--output=tokens"], 1000),
    "a tokenizer": (["train_tokenizer", "text.txt", "--vocab_size=300", "--output=t.json"], 1000),
    "a copy": (["configs", "copy", "recipes/tiny.gin"], 100),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_reported_in_words_and_leaves_no_part_of_a_file(name, work, limit, capfd):
    arguments, size = COMMANDS[name]
    limit(size)
    code = call(*arguments)
    limit(resource.RLIM_INFINITY)
    errors = capfd.readouterr().err
    assert code in (1, 2)
    assert "cannot write" in errors or "could not be written" in errors
    assert "File too large" in errors
    assert "Traceback" not in errors
    assert not any(Path(file).exists() for file in ("weights.safetensors", "runs.png", "t.json", "tiny.gin"))
    assert call(*arguments) == 0, "the same command goes on once there is room"


def test_the_reason_is_that_of_the_system():
    """torch's writer raises an error about positions in its archive, in the handling of the error of the system."""

    def write():
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")  # noqa: B904

    with pytest.raises(RuntimeError) as raised:
        write()
    assert reason_of(raised.value) == "No space left on device"
    assert reason_of(RuntimeError("other")) == "other"
