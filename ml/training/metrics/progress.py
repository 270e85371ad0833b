"""Progress display of a run."""

import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO

from ml import terminal
from ml.training.metrics.lasting_stream import lasting

_SECONDS_BETWEEN_DRAWINGS = 0.1
_LONGEST_BAR = 30
_SHORTEST_BAR = 8
_SMALLEST_EPOCH = 0.005  # an earlier one is shown as 0.00
_VALIDATED = re.compile(r"validation(?:_(\w+))?_bits_per_byte")  # of a set with a name, or of the one without


class Progress(Protocol):
    """Displays the progress of a run."""

    def start(self, step: int) -> None:
        """Starts the display of a run at `step`."""

    def advance(self, step: int) -> None:
        """Updates the display after `step`."""

    def report(self, record: Mapping[str, Any]) -> None:
        """Shows the metrics of a logged step; `record` is its line of `metrics.jsonl`."""

    def say(self, message: str) -> None:
        """Prints a permanent line."""

    def close(self) -> None:
        """Ends the display at the start of a line."""


def progress_on(stream: TextIO, num_steps: int) -> Progress:
    """Returns a progress line on a terminal, and one line per logged step elsewhere."""
    stream = lasting(stream)
    return TerminalProgress(stream, num_steps) if stream.isatty() else PlainProgress(stream, num_steps)


class TimeLeft:
    """Estimates the remaining time from the steps after the first one, which compiles and warms up."""

    def __init__(self, num_steps: int, clock: Callable[[], float] = time.monotonic):
        self._num_steps = num_steps
        self._clock = clock
        self._origin: tuple[int, float] | None = None

    def seconds(self, step: int) -> float | None:
        """Returns the estimate at `step`; None at the first call."""
        now = self._clock()
        if self._origin is None:
            self._origin = (step, now)
        first_step, then = self._origin
        return (now - then) / (step - first_step) * (self._num_steps - step) if step > first_step else None


class PlainProgress:
    """One line per logged step, for log files and pipes."""

    def __init__(self, stream: TextIO, num_steps: int):
        self._stream = stream
        self._num_steps = num_steps
        self._time_left = TimeLeft(num_steps)
        self._seconds_left: float | None = None

    def start(self, step: int) -> None:
        pass

    def advance(self, step: int) -> None:
        self._seconds_left = self._time_left.seconds(step)

    def report(self, record: Mapping[str, Any]) -> None:
        fields = [f"step {record['step']}/{self._num_steps}", *describe(record).values()]
        if self._seconds_left:
            fields.append(f"{terminal.duration(self._seconds_left)} left")
        self.say("  ".join(fields))

    def say(self, message: str) -> None:
        print(message, file=self._stream, flush=True)

    def close(self) -> None:
        pass


class NoProgress:
    """Nothing is displayed, in processes that do not own the terminal."""

    def start(self, step: int) -> None:
        pass

    def advance(self, step: int) -> None:
        pass

    def report(self, record: Mapping[str, Any]) -> None:
        pass

    def say(self, message: str) -> None:
        pass

    def close(self) -> None:
        pass


class TerminalProgress:
    """A progress line that is redrawn; validations and messages stay above it."""

    # Fields that are dropped on a narrow terminal, in this order.
    _DROPPED_FIRST = (
        "epoch", "learning_rate", "mfu", "bar", "validation_bits_per_byte", "tokens_per_second", "left", "loss"
    )  # fmt: skip

    def __init__(self, stream: TextIO, num_steps: int, clock: Callable[[], float] = time.monotonic):
        self._stream = stream
        self._num_steps = num_steps
        self._clock = clock
        self._time_left = TimeLeft(num_steps, clock)
        self._step = 0
        self._fields: dict[str, str] = {}
        self._drawn_at = -math.inf
        self._shown = False
        self._bar_characters = terminal.bar_characters(stream)

    def start(self, step: int) -> None:
        self._step = step
        self._draw()

    def advance(self, step: int) -> None:
        self._step = step
        self._fields.pop("left", None)
        if left := self._time_left.seconds(step):
            self._fields["left"] = f"{terminal.duration(left)} left"
        if self._clock() - self._drawn_at >= _SECONDS_BETWEEN_DRAWINGS:
            self._draw()

    def report(self, record: Mapping[str, Any]) -> None:
        described = describe(record)
        shown = {name: text for name, text in described.items() if name != "grad_norm"}
        left = {"left": self._fields.pop("left")} if "left" in self._fields else {}
        self._fields |= shown | left
        if any(_VALIDATED.fullmatch(name) for name in described):
            self.say("  ".join([f"step {record['step']}/{self._num_steps}", *described.values()]))
        self._draw()

    def say(self, message: str) -> None:
        terminal.write_above(self._stream, message)
        if self._shown:
            self._draw()

    def close(self) -> None:
        if self._shown:
            self._draw()
            print(file=self._stream, flush=True)
            self._shown = False

    def line(self, width: int) -> str:
        """Returns the current line, at most `width` columns wide."""
        bar = {"bar": self._bar(_SHORTEST_BAR)}
        fields = {**bar, "step": f"step {self._step}/{self._num_steps}", **self._fields}
        named = [name for name in self._fields if _VALIDATED.fullmatch(name)]
        for name in (*named[1:], *self._DROPPED_FIRST, *named):
            if len("  ".join(fields.values())) > width:
                fields.pop(name, None)
        room = width - len("  ".join(fields.values()))
        if "bar" in fields:
            fields["bar"] = self._bar(min(_LONGEST_BAR, _SHORTEST_BAR + room))
        return "  ".join(fields.values())[:width]

    def _bar(self, length: int) -> str:
        return terminal.bar(length, self._step / max(1, self._num_steps), self._bar_characters)

    def _draw(self) -> None:
        self._drawn_at = self._clock()
        self._shown = True
        terminal.redraw(self._stream, self.line(terminal.width_of(self._stream) - 1))


def describe(record: Mapping[str, Any]) -> dict[str, str]:
    """Formats the metrics of a record, by their names in the record."""
    formats: dict[str, Callable[[Any], str]] = {
        "loss": lambda value: f"loss {value:.4f}",
        "grad_norm": lambda value: f"grad norm {value:.2f}",
        "learning_rate": lambda value: f"lr {value:.2e}",
        "tokens_per_second": lambda value: f"{value:,.0f} tokens/s",
        "mfu": lambda value: f"{value:.1%} MFU",
        "reward_accuracy": lambda value: f"accuracy {value:.1%}",
        "reward_margin": lambda value: f"margin {value:.2f}",
    }
    described = {name: text(record[name]) for name, text in formats.items() if record.get(name) is not None}
    if record.get("epoch", 0.0) >= _SMALLEST_EPOCH:
        described["epoch"] = f"epoch {record['epoch']:.2f}"
    for name, value in record.items():
        if validated := _VALIDATED.fullmatch(name):
            described[name] = f"{validated[1] or 'validation'} {value:.4f} bits/byte"
    return described
