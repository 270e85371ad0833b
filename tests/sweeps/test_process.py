"""Signals to a sweep, and its lock."""

import os
import signal
import sys

import pytest

import ml
from ml.errors import RunFailure
from ml.sweeps.file import Member
from ml.sweeps.plan import PlannedRun
from ml.sweeps.process import Stop, Watcher, locked, run_members
from ml.sweeps.state import Status
from ml.training.run_folder import RunFolder


class Recorder:
    """Replaces a process and records its signals."""

    def __init__(self):
        self.signals = []

    def send_signal(self, number):
        self.signals.append(number)


PASSED_ON = {signal.SIGINT: signal.SIGINT, signal.SIGTERM: signal.SIGTERM, signal.SIGHUP: signal.SIGTERM}


@pytest.mark.parametrize(("sent", "received"), PASSED_ON.items())
def test_signals_are_passed_on_to_the_run(sent, received, hangups):
    stop = Stop()
    stop.process = Recorder()
    with stop.listening():
        os.kill(os.getpid(), sent)
        assert stop.process.signals == [received]
        os.kill(os.getpid(), sent)  # a second Ctrl-C makes the run exit immediately
        assert stop.process.signals == [received] * 2
    assert stop.is_asked


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_signals_that_a_sweep_was_started_without_stay_ignored(number):
    """A sweep under nohup continues when its terminal closes, one in the background when another is interrupted."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        stop = Stop()
        with stop.listening():
            os.kill(os.getpid(), number)
        assert not stop.is_asked
    finally:
        signal.signal(number, before)


def test_two_sweeps_cannot_use_one_folder(tmp_path):
    with locked(tmp_path), pytest.raises(RunFailure, match="another sweep is at work"):
        run_members(None, [], tmp_path, Watcher())
    assert run_members(None, [], tmp_path, Watcher()) == ([], False)


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """Members whose processes run a line of Python instead of training."""

    def make(**lines):
        monkeypatch.setattr(PlannedRun, "command", lambda run, sweep: [sys.executable, "-c", lines[run.member.name]])
        config = ml.load("recipes/tiny.gin")
        return [PlannedRun(Member(name, (), (), {}), config, RunFolder(tmp_path / name), 20) for name in lines]

    return make


def test_a_run_stopped_before_its_first_checkpoint_did_not_fail(planned, tmp_path):
    class StopAtOnce(Watcher):
        def looked(self, number, run, line):
            os.kill(os.getpid(), signal.SIGINT)

    states, is_stopped = run_members(None, planned(a="import time; time.sleep(60)", b=""), tmp_path, StopAtOnce())
    assert is_stopped
    assert [state.status for state in states] == [Status.NEW, Status.NEW]
    assert not (tmp_path / "b").exists()


def test_the_reason_is_the_last_nonempty_line(planned, tmp_path):
    lines = {
        "a": "print('x' * 9000); print('the disk is full'); print(); exit(1)",
        "b": "import os; os.kill(os.getpid(), 9)",
    }
    states, is_stopped = run_members(None, planned(**lines), tmp_path, Watcher())
    assert not is_stopped
    assert [(state.text, state.reason) for state in states] == [
        ("failed: exit code 1", "the disk is full"),
        ("failed: killed by SIGKILL", ""),
    ]


def test_a_member_whose_log_cannot_be_written_is_a_failure_with_a_message(planned, tmp_path):
    (tmp_path / "a" / "log.txt").mkdir(parents=True)
    with pytest.raises(RunFailure, match=r"cannot start a, with its log in .*/a/log\.txt: Is a directory"):
        run_members(None, planned(a=""), tmp_path, Watcher())
