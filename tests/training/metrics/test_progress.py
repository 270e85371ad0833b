"""Progress output."""

import io
import os
import pty

import pytest

from ml.terminal import duration
from ml.training.metrics.progress import PlainProgress, TerminalProgress, TimeLeft, progress_on

RECORD = {"step": 50, "loss": 1.23456, "grad_norm": 0.5, "learning_rate": 3e-4, "tokens_per_second": 12345.6}


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def terminal(stream, clock):
    return TerminalProgress(stream, 100, clock)


def test_plain_lines_say_what_was_measured_and_nothing_for_other_steps():
    stream = io.StringIO()
    progress = PlainProgress(stream, 100)
    progress.start(0)
    progress.advance(50)
    progress.report(RECORD | {"validation_bits_per_byte": 2.5})
    progress.advance(51)
    progress.close()
    expected = "step 50/100  loss 1.2346  grad norm 0.50  lr 3.00e-04  12,346 tokens/s  validation 2.5000 bits/byte\n"
    assert stream.getvalue() == expected


@pytest.mark.parametrize("width", [10, 20, 40, 60, 79, 120, 200])
def test_the_line_fits_the_terminal_and_keeps_the_step_longest(width):
    clock = Clock()
    progress = terminal(io.StringIO(), clock)
    for step in (49, 50):
        progress.advance(step)
        clock.now += 7.0
    progress.report(RECORD | {"validation_bits_per_byte": 2.5})
    line = progress.line(width)
    assert len(line) <= width
    assert "step 50/10" in line
    if width >= 120:
        for word in ("loss 1.2346", "12,346 tokens/s", "lr 3.00e-04", "5m 50s left", "validation 2.5000 bits/byte"):
            assert word in line


def test_the_terminal_is_drawn_at_most_ten_times_a_second():
    clock, stream = Clock(), io.StringIO()
    progress = terminal(stream, clock)
    progress.start(0)
    for step in range(1, 101):
        clock.now += 0.01
        progress.advance(step)
    assert stream.getvalue().count("\r") <= 12


def test_messages_stay_above_the_line_and_the_end_is_the_start_of_a_line():
    stream = io.StringIO()
    progress = terminal(stream, Clock())
    progress.start(0)
    progress.say("resuming")
    progress.close()
    progress.say("done")
    written = stream.getvalue()
    assert "\r\x1b[Kresuming\n" in written
    assert written.endswith("\n\r\x1b[Kdone\n")


def test_a_terminal_gets_the_line_that_changes_and_a_file_plain_lines():
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream:
        assert isinstance(progress_on(stream, 10), TerminalProgress)
    os.close(master)
    assert isinstance(progress_on(io.StringIO(), 10), PlainProgress)


def test_time_left_excludes_the_first_step():
    clock = Clock()
    left = TimeLeft(100, clock)
    clock.now = 60.0  # the first step compiled
    assert left.seconds(21) is None
    clock.now = 62.0
    assert left.seconds(22) == pytest.approx(2.0 * 78)
    clock.now = 66.0
    assert left.seconds(25) == pytest.approx(1.5 * 75)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0s"), (59.4, "59s"), (59.6, "1m 00s"), (3599.9, "1h 00m"), (7600, "2h 06m"), (385_200, "4d 11h")],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text
