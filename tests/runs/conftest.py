"""A run that was trained by `ml.train`, and the command line beside it."""

import contextlib
import io

import pytest
from small_run import SMALL

import ml
from ml.cli.verbs import main


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder with a text, more texts, and the run `run`."""
    path = tmp_path_factory.mktemp("runs")
    (path / "text.txt").write_text("".join(f"{n} times {n} is {n * n}.\n" for n in range(400)))
    (path / "more").mkdir()
    (path / "more" / "a.txt").write_text("seven times eight")
    (path / "more" / "b.md").write_text("# nine times ten")
    with contextlib.chdir(path):
        config = ml.load("recipes/tiny.gin", [*SMALL, f"TextFiles.paths = {str(path / 'text.txt')!r}"])
        ml.train(config, "run", device="cpu", stream=io.StringIO())
    return path


@pytest.fixture
def run(folder):
    return ml.open_run(folder / "run")


@pytest.fixture
def juniper(folder, monkeypatch, capsys):
    """Calls a verb in the folder; returns what it printed."""

    def call(*arguments):
        monkeypatch.chdir(folder)
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    return call
