"""Training outlives the terminal, the pipe and the file that display its progress."""

import os
import sys

import pytest

from ml.training.metrics.lasting_stream import lasting
from ml.training.metrics.progress import progress_on


def full_disk():
    return open("/dev/full", "w")


def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def closed_terminal():
    ours, theirs = os.openpty()
    os.close(ours)
    return os.fdopen(theirs, "w")


REASONS = {full_disk: "No space left on device", closed_pipe: "Broken pipe", closed_terminal: "Input/output error"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize("make", REASONS)
def test_a_stream_that_takes_no_more_is_dropped_with_one_message(make, capsys):
    stream = make()
    progress = progress_on(stream, 10)
    for step in range(1, 4):
        progress.advance(step)
        progress.report({"step": step, "loss": 1.0})
        progress.say("a line")
    progress.close()
    stream.close()  # as at the end of the process, where an error would be its exit code
    message = f"progress is no longer displayed, and training continues: {REASONS[make]}\n"
    assert capsys.readouterr().err == message


def test_a_stream_that_works_shows_everything(capsys):
    stream = lasting(sys.stdout)
    print("first", file=stream, flush=True)
    print("second", file=stream)
    assert capsys.readouterr() == ("first\nsecond\n", "")
