"""Signals to a sweep, and its lock."""

import os
import signal

import pytest

from ml.errors import RunFailure
from ml.sweeps.process import Stop, Watcher, locked, run_members


class Recorder:
    """Stands for a process and notes the signals that it is sent."""

    def __init__(self):
        self.signals = []

    def send_signal(self, number):
        self.signals.append(number)


PASSED_ON = {signal.SIGINT: signal.SIGINT, signal.SIGTERM: signal.SIGTERM, signal.SIGHUP: signal.SIGTERM}


@pytest.mark.parametrize(("sent", "received"), PASSED_ON.items())
def test_signals_are_passed_on_to_the_run(sent, received):
    stop = Stop()
    stop.process = Recorder()
    with stop.listening():
        os.kill(os.getpid(), sent)
        assert stop.process.signals == [received]
        os.kill(os.getpid(), sent)  # a second Ctrl-C makes the run leave at once
        assert stop.process.signals == [received] * 2
    assert stop.is_asked


def test_what_nohup_started_goes_on_when_its_terminal_closes():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = Stop()
        with stop.listening():
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.is_asked
    finally:
        signal.signal(signal.SIGHUP, before)


def test_two_sweeps_do_not_work_in_one_folder(tmp_path):
    with locked(tmp_path), pytest.raises(RunFailure, match="another sweep is at work"):
        run_members(None, [], tmp_path, Watcher())
    assert run_members(None, [], tmp_path, Watcher()) == ([], False)
