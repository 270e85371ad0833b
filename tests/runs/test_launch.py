"""`ml.train`: its folder, its warnings, stopping and resuming, and where its weights come from."""

import io
import json
import os
import re
import signal

import pytest
import torch
from small_run import SMALL

import ml
from ml.training.metrics.throughput import MACHINE_METRICS


@pytest.fixture
def load(folder):
    """Loads a small configuration with further bindings."""

    def load(*bindings):
        return ml.load("recipes/tiny.gin", [*SMALL, f"TextFiles.paths = {str(folder / 'text.txt')!r}", *bindings])

    return load


def train(config, run_dir=None, **options):
    return ml.train(config, run_dir, device="cpu", stream=io.StringIO(), **options)


def measured(run):
    return [{name: x for name, x in record.items() if name not in MACHINE_METRICS} for record in run.metrics()]


def weights(run):
    return dict(run.build().named_parameters())


class Interrupting(io.StringIO):
    """Sends this process a signal once the progress has come to a step."""

    def __init__(self, step, number=signal.SIGINT):
        super().__init__()
        self._marks = [f"step {step}/"]
        self._number = number

    def write(self, text):
        if self._marks and text.startswith(self._marks[0]):
            self._marks.clear()
            os.kill(os.getpid(), self._number)
        return super().write(text)


def test_training_leaves_the_folder_of_train_py_and_opens_it(load, folder, run):
    config = load()
    assert run.config == config
    assert (run.step, run.is_finished) == (4, True)
    assert sorted(path.name for path in run.path.iterdir()) == [
        "checkpoints", "config.gin", "environment.json", "history.jsonl", "metrics.jsonl", "operative_config.gin",
        "provenance.json", "tokenizer",
    ]  # fmt: skip
    environment = json.loads((run.path / "environment.json").read_text())
    assert re.fullmatch("[0-9a-f]{64}", environment["data"]["sha256"])


def test_the_command_line_measures_the_same(run, folder, juniper):
    flags = [f"--gin_bindings={binding}" for binding in [*SMALL, f"TextFiles.paths = {str(folder / 'text.txt')!r}"]]
    with pytest.raises(SystemExit) as ended:
        juniper("train", "--gin_file=recipes/tiny.gin", *flags, "--run_dir=commanded")
    assert ended.value.code in (0, None)
    commanded = ml.open_run(folder / "commanded")
    assert measured(commanded) == measured(run)
    assert commanded.config.fingerprint == run.config.fingerprint


def test_without_a_folder_one_is_named_after_the_configuration_and_the_time(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = train(load())
    assert re.fullmatch(r"runs/tiny-\d{8}-\d{6}", str(run.path))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_run_returns_is_not_finished_and_resumes(load, run, tmp_path, number, hangups):
    config = load()
    stopped = ml.train(config, tmp_path / "run", device="cpu", stream=Interrupting(1, number))
    assert not stopped.is_finished
    assert 1 <= stopped.step < 4
    resumed = train(stopped.config, stopped.path)
    assert resumed.is_finished
    assert measured(resumed) == measured(run)
    ours, theirs = weights(resumed), weights(run)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert stopped.step == 4  # it is the same folder


def test_a_dry_folder_has_taken_no_step(load, tmp_path):
    from ml.building import build_trainer
    from ml.distributed import World
    from ml.runs.launch import Launch

    config = load()
    Launch(config, build_trainer(config), tmp_path / "dry", World()).write_config()
    run = ml.open_run(tmp_path / "dry")
    assert (run.step, run.is_finished) == (0, False)


def test_a_folder_with_a_dry_run_alone_blocks_nothing(load, tmp_path):
    from ml.building import build_trainer
    from ml.distributed import World
    from ml.runs.launch import Launch

    dry, config = load("Linear.bias = True"), load()
    Launch(dry, build_trainer(dry), tmp_path / "run", World()).write_config()
    (tmp_path / "run/code").mkdir()
    (tmp_path / "run/code/of_the_dry_run.py").write_text("")
    run = train(config, tmp_path / "run")
    assert run.config.fingerprint == config.fingerprint != dry.fingerprint
    assert run.is_finished
    assert not (run.path / "code").exists()
    with pytest.raises(ml.UserError, match="holds a run of another configuration"):
        Launch(dry, build_trainer(dry), tmp_path / "run", World())


def test_an_empty_folder_name_is_refused(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ml.UserError, match="run_dir is empty"):
        train(load(), "")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_configuration_is_refused_with_the_difference(load, run):
    before = (run.path / "operative_config.gin").read_text()
    with pytest.raises(ml.UserError, match=r"holds a run of another configuration. Name another run_dir") as refused:
        train(load("Linear.bias = True"), run.path)
    assert "- Linear.bias = False" in str(refused.value)
    assert (run.path / "operative_config.gin").read_text() == before


def test_data_that_is_not_there_leaves_no_folder(tmp_path):
    config = ml.load("recipes/tiny.gin", [*SMALL, "TextFiles.paths = 'nowhere'"])
    with pytest.raises(ml.UserError, match="no such file or folder: nowhere"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_warnings_of_the_configuration_and_of_the_run_go_to_standard_error(folder, tmp_path, capsys):
    (tmp_path / "short.txt").write_text("A text of a few words. " * 20)
    bindings = [*SMALL, "Trainer.num_steps = 20", f"TextFiles.paths = {str(tmp_path / 'short.txt')!r}"]
    config = ml.load("recipes/tiny.gin", [*bindings, "qeury/Linear.bias = True"], allow_unused_bindings=True)
    capsys.readouterr()
    train(config, tmp_path / "run")
    errors = capsys.readouterr().err
    assert "there is no scope 'qeury'" in errors
    assert re.search(r"^warning: the run reads its data \d\d times", errors, re.M)


def test_a_run_with_modules_of_a_user_opens_after_training(folder, tmp_path, monkeypatch):
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "my_mlps.py").write_text(
        "from ml.config import configurable\nfrom ml.layers import MLP\n\n@configurable\nclass MyMLP(MLP):\n    pass\n"
    )
    (tmp_path / "exp" / "own.gin").write_text("import my_mlps\ninclude 'recipes/tiny.gin'\nDecoderBlock.mlp = @MyMLP\n")
    monkeypatch.chdir(tmp_path)
    bindings = [*SMALL, f"TextFiles.paths = {str(folder / 'text.txt')!r}"]
    run = train(ml.load("exp/own.gin", bindings), "run")
    assert len(run.generate("3", num_tokens=3)) <= 3
