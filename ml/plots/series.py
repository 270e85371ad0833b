"""Metrics of a run as points to draw. Imports neither torch nor matplotlib."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ml.config.errors import did_you_mean
from ml.errors import UserError
from ml.metric_names import SEPARATOR, flat
from ml.run_files import parse_record, require_self_contained

X_AXES = ("tokens", "step", "seconds")


@dataclass(frozen=True)
class Metrics:
    """The readable lines of a `metrics.jsonl`.

    Attributes:
        path: The file.
        records: One flat record per line; values in nested objects have names such as `routers/NAME/PART`.
        broken_lines: The numbers of the lines that cannot be read, from 1.
        num_lines: The number of lines in the file.
    """

    path: Path
    records: tuple[dict[str, float], ...]
    broken_lines: tuple[int, ...] = ()
    num_lines: int = 0

    @property
    def names(self) -> list[str]:
        """The names of all metrics, in the order of their first measurement."""
        return list(dict.fromkeys(name for record in self.records for name in record))

    def last(self, name: str) -> float | None:
        """Returns the newest value of a metric, or None."""
        return next((record[name] for record in reversed(self.records) if name in record), None)

    @property
    def warning(self) -> str | None:
        """The warning about skipped lines; None if there are none."""
        if not self.broken_lines:
            return None
        if self.broken_lines == (self.num_lines,):
            return f"{self.path}: skipped the last line, which is incomplete: the run is writing it, or was interrupted"
        shown = ", ".join(map(str, self.broken_lines[:5])) + (", ..." if len(self.broken_lines) > 5 else "")
        return f"{self.path}: skipped unreadable lines: {shown}"


@dataclass(frozen=True)
class Series:
    """Points in the order of measurement; `x` and `y` have equal length."""

    x: np.ndarray
    y: np.ndarray


def read_metrics(folder: Path) -> Metrics:
    """Returns the metrics of the run in a folder.

    Raises:
        UserError: There is no run, or it has no metrics yet.
    """
    require_self_contained(folder)
    if not (folder / "operative_config.gin").is_file():
        raise UserError(f"there is no run in {folder}: it has no operative_config.gin")
    metrics = parse_metrics(folder / "metrics.jsonl")
    if not metrics.records:
        raise UserError(f"{folder} has no metrics yet: {metrics.path} has no readable line")
    return metrics


def parse_metrics(path: Path) -> Metrics:
    """Returns the lines of a file; a missing file has none.

    Raises:
        UserError: The file cannot be opened.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return Metrics(path, ())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    records = [_parse(line) for line in lines]
    broken = tuple(number for number, record in enumerate(records, 1) if record is None)
    return Metrics(path, tuple(record for record in records if record is not None), broken, len(lines))


def series(metrics: Metrics, name: str, x: str) -> Series:
    """Returns a metric over `x`, at the steps with both values."""
    points = [(record[x], record[name]) for record in metrics.records if x in record and name in record]
    array = np.array(points, dtype=np.float64).reshape(-1, 2)
    return Series(array[:, 0], array[:, 1])


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Returns the centered running mean over `window` values.

    An even window counts as one less. At the beginning, where a loss falls fast, the window shrinks to the first value.
    The last half window is a straight line fitted to the last whole window, since a single last value is noisy.
    """
    half = (min(window, len(values)) - 1) // 2
    if half < 1:
        return values
    index = np.arange(len(values) - half)
    reach = np.minimum(index, half)
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    means = (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)
    places = np.arange(-half, half + 1)
    slope = places @ values[-len(places) :] / (places @ places)
    return np.concatenate([means, values[-len(places) :].mean() + slope * places[half + 1 :]])


def require_metric(name: str, runs: Iterable[Metrics]) -> None:
    """Checks that one of the runs has a metric.

    Raises:
        UserError: No run has it; the message lists the metrics.
    """
    known = list(dict.fromkeys(known for metrics in runs for known in metrics.names))
    if name in known:
        return
    parts = [other for other in known if other.startswith(f"{name}{SEPARATOR}")]
    if parts:
        raise UserError(f"{name} has parts; name one of them: {', '.join(parts)}")
    objects = (other.partition(SEPARATOR) for other in known)
    there = ", ".join(dict.fromkeys(f"{name}{separator}*" if separator else name for name, separator, _ in objects))
    raise UserError(f"no run has measured {name!r}{did_you_mean(name, known) or '.'} There are {there}")


def _parse(line: bytes) -> dict[str, float] | None:
    """The flat record of a line; None if the line is invalid."""
    record, _ = parse_record(line)
    try:
        return None if record is None else dict(flat(record))
    except RecursionError:  # of objects in objects
        return None
