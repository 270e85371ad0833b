"""Progress lines of a sweep."""

import io
from pathlib import Path

import pytest

import ml
from ml.cli.sweep_progress import watcher_on
from ml.plots.series import Metrics
from ml.sweeps.file import Member
from ml.sweeps.plan import PlannedRun
from ml.sweeps.state import State, Status
from ml.training.run_folder import RunFolder


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def run():
    return PlannedRun(Member("a", (), (), {}), ml.load("recipes/tiny.gin"), RunFolder("out/a"), 20)


def told(stream, run):
    watcher = watcher_on(stream, 3)
    metrics = Metrics(Path("m"), ({"step": 7, "loss": 2.0, "validation_loss": 2.5},))
    watcher.skipped(0, State(run, Status.FINISHED, metrics))
    watcher.started(1, run)
    watcher.looked(1, run, "")
    watcher.looked(1, run, "step 7/20  loss 2.0000")
    watcher.ended(1, State(run, Status.UNFINISHED, metrics, 0))
    watcher.ended(2, State(run, Status.FAILED, Metrics(Path("m"), ()), -9, "no memory"))
    return stream.getvalue()


def test_a_pipe_gets_a_line_at_the_start_and_end_of_each_run(run):
    assert told(io.StringIO(), run).splitlines() == [
        "[1/3] a  finished before",
        "[2/3] a",
        "[2/3] a  unfinished at step 7  loss 2.5000",
        "[3/3] a  failed: killed by SIGKILL  no memory",
    ]


def test_a_terminal_has_one_line_that_follows_the_log_and_never_wraps(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "24")
    drawn = told(Terminal(), run).split("\r")
    assert drawn[2:5] == ["[2/3] a\x1b[K", "[2/3] a  starting\x1b[K", "[2/3] a  step 7/20  los\x1b[K"]
    assert drawn[5] == "\x1b[K[2/3] a  unfinished at step 7  loss 2.5000\n"
