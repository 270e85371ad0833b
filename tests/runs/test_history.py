"""Starts of a run: options that change no result may differ, and each start is recorded."""

import io
import json
import os
import shutil

import pytest
from small_run import SMALL

import ml
from ml.building import build_trainer
from ml.distributed import World
from ml.runs.launch import Launch
from ml.training.history import append_start, read_starts

OTHER = ["Checkpoints.every = 3", "Trainer.log_every = 2", "Trainer.num_loader_workers = 0"]


@pytest.fixture
def load(folder):
    def load(*bindings):
        return ml.load("recipes/tiny.gin", [*SMALL, f"TextFiles.paths = {str(folder / 'text.txt')!r}", *bindings])

    return load


def train(config, run_dir):
    stream = io.StringIO()
    return ml.train(config, run_dir, device="cpu", stream=stream), stream.getvalue()


def test_a_start_with_other_neutral_options_is_shown_and_recorded(load, tmp_path):
    train(load(), tmp_path / "run")
    run, printed = train(load(*OTHER), tmp_path / "run")
    assert "changed for this start, without effect on the result (- before, + now):" in printed
    assert "  - Checkpoints.every = 2\n" in printed
    assert "  + Checkpoints.every = 3\n" in printed
    assert run.config == load()
    assert "Checkpoints.every = 3" in (run.path / "operative_config.gin").read_text()
    first, second = read_starts(run.path / "history.jsonl")
    assert (first["first_step"], first["changed"], first["segment"]) == (1, [], 0)
    assert (second["first_step"], second["segment"]) == (5, 0)
    assert {"+ Checkpoints.every = 3", "- Trainer.log_every = 1"} <= set(second["changed"])
    assert (second["pid"], second["version"]) == (os.getpid(), ml.__version__)
    assert all(second[name] for name in ("time", "user", "host", "command"))
    _, again = train(load(*OTHER), tmp_path / "run")
    assert "changed for this start" not in again


def test_a_value_set_explicitly_that_was_a_default_is_no_change(load, run):
    launch = Launch(load("Trainer.seed = 0", "AdamW.epsilon = 1e-8"), build_trainer(load()), run.path, World())
    assert launch.continuation.changed == ()


def test_a_folder_with_only_a_dry_run_in_it_blocks_nothing(load, tmp_path):
    config = load()
    Launch(config, build_trainer(config), tmp_path / "dry", World()).write_config()
    other = load("Linear.bias = True")
    assert Launch(other, build_trainer(other), tmp_path / "dry", World()).continuation.saved is None


def test_a_run_that_changed_since_the_decision_is_refused(load, run, tmp_path):
    config = load()
    launch = Launch(config, build_trainer(config), tmp_path / "run", World())
    launch.write_config()
    launch.folder.append_history({})
    with pytest.raises(ml.UserError, match="another process has just changed the run"):
        launch.train(io.StringIO())


def test_a_record_truncated_by_a_crash_is_skipped_and_replaced(tmp_path):
    path = tmp_path / "history.jsonl"
    assert read_starts(path) == []
    append_start(path, {"first_step": 1})
    path.write_bytes(path.read_bytes() + b'{"first_st')
    assert read_starts(path) == [{"first_step": 1}]
    append_start(path, {"first_step": 3})
    assert read_starts(path) == [{"first_step": 1}, {"first_step": 3}]
    assert [json.loads(line) for line in path.read_text().splitlines()] == read_starts(path)


BAD = {b'{"first_step": 1': "it is not JSON", b'"\xff"': "byte 2 is not UTF-8", b"[]": "an object with a first step"}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_line_is_one_message_with_file_and_line(load, run, tmp_path, line):
    copy = shutil.copytree(run.path, tmp_path / "run")
    with (copy / "history.jsonl").open("ab") as file:
        file.write(line + b'\n{"first_step": 3}\n')
    with pytest.raises(ml.UserError, match=rf"run/history.jsonl:2 is damaged: .*{BAD[line]}"):
        ml.open_run(copy).history()
