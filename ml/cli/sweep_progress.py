"""Progress display of a sweep."""

from typing import TextIO

from ml import terminal
from ml.sweeps.plan import PlannedRun
from ml.sweeps.process import Watcher
from ml.sweeps.state import State


def watcher_on(stream: TextIO, count: int) -> Watcher:
    """A line for each member; on a terminal the newest is updated during its run."""
    return _Terminal(stream, count) if stream.isatty() else _Plain(stream, count)


class _Plain(Watcher):
    """A line where a member begins and one where it ends."""

    def __init__(self, stream: TextIO, count: int):
        self._stream = stream
        self._count = count

    def skipped(self, number: int, state: State) -> None:
        self._say(f"{self._head(number, state.run)}  finished before")

    def started(self, number: int, run: PlannedRun) -> None:
        self._say(self._head(number, run))

    def ended(self, number: int, state: State) -> None:
        loss = state.metrics.last("validation_loss") or state.metrics.last("loss")
        said = [state.text, *([f"loss {loss:.4f}"] if loss is not None else []), state.reason]
        self._say("  ".join([self._head(number, state.run), *filter(None, said)]))

    def _head(self, number: int, run: PlannedRun) -> str:
        return f"[{number + 1}/{self._count}] {run.member.name}"

    def _say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


class _Terminal(_Plain):
    """The line of the member that runs is drawn again as its log grows."""

    def started(self, number: int, run: PlannedRun) -> None:
        self._draw(self._head(number, run))

    def looked(self, number: int, run: PlannedRun, line: str) -> None:
        self._draw(f"{self._head(number, run)}  {line or 'starting'}")

    def _draw(self, line: str) -> None:
        terminal.redraw(self._stream, line)

    def _say(self, line: str) -> None:
        terminal.write_above(self._stream, line)
