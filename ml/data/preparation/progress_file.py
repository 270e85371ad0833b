"""Progress of a preparation on disk, from which it resumes."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ml.data.errors import DataError
from ml.data.preparation.cutting import Position
from ml.data.reading.sources import Source
from ml.data.token_files.reading import MANIFEST, UNFINISHED
from ml.files import LockedError, locked, write_atomically

_PROGRESS = "progress.json"
_LOCK = ".lock"
_FORMAT = "juniper preparation 1"
_EARLIER = {"hold_out_by": "name"}  # options that earlier releases lack, with the value that they imply


@dataclass
class Progress:
    """Progress of a preparation.

    Attributes:
        position: Position in the sources.
        writers: Position of the writer of each split; None before its first commit.
        counts: Number of findings of each kind.
        num_bytes: Bytes of the source files that are done.
    """

    position: Position
    writers: list[dict[str, Any] | None]
    counts: dict[str, int]
    num_bytes: int


class OutputFolder:
    """Output folder of a preparation.

    preparation.json records the sources and options, and is kept. progress.json exists from the first commit until the
    preparation is complete.
    """

    def __init__(self, path: Path):
        self.path = path

    @contextmanager
    def begun(
        self, settings: dict[str, Any], sources: Sequence[Source], parts: Sequence[Path]
    ) -> Iterator[Progress | None]:
        """Creates or reopens the folder, locks it, and yields the progress; None if all is done.

        Args:
            settings: Options that determine the output.
            sources: Files to read.
            parts: Folders of token files to write.

        Raises:
            DataError: The folder contains something else, another preparation, one of sources that have changed, or one
                that is running.
            OSError: The folder cannot be written to.
        """
        plan = {
            "format": _FORMAT,
            "settings": settings,
            "sources": [[source.name, source.size, source.modified] for source in sources],
        }
        self._refuse_something_else()
        self.path.mkdir(parents=True, exist_ok=True)
        with self._locked():
            if (self.path / UNFINISHED).exists():
                self._compare(plan)
            else:
                write_atomically(self.path / UNFINISHED, json.dumps(plan, indent=1) + "\n")
            yield self._progress(parts)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with locked(self.path / _LOCK, kept_by_children=False):
                try:
                    yield
                finally:
                    (self.path / _LOCK).unlink()
        except LockedError:
            raise DataError(f"another process is preparing {self.path}") from None

    def _progress(self, parts: Sequence[Path]) -> Progress | None:
        if (self.path / _PROGRESS).exists():
            kept = _read_json(self.path / _PROGRESS)
            return Progress(Position(*kept["position"]), kept["writers"], kept["counts"], kept["num_bytes"])
        if all((part / MANIFEST).exists() for part in parts):
            return None
        return Progress(Position(), [None] * len(parts), {}, 0)

    def write(self, progress: Progress) -> None:
        """Replaces the recorded progress; the writers must have flushed their tokens."""
        write_atomically(self.path / _PROGRESS, json.dumps(asdict(progress)) + "\n")

    def end(self) -> None:
        """Marks the preparation as complete."""
        (self.path / _PROGRESS).unlink(missing_ok=True)

    def _refuse_something_else(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise DataError(f"{self.path} (--output) is not a folder")
        ours = {_LOCK, f".{UNFINISHED}.tmp"}  # left by a process that was killed at its start
        if not self.path.is_dir() or (self.path / UNFINISHED).exists():
            return
        others = sorted(file.name for file in self.path.iterdir() if file.name not in ours)
        if others:
            raise DataError(f"{self.path} (--output) contains other files, such as {others[0]}; choose another folder")

    def _compare(self, plan: dict[str, Any]) -> None:
        """Compares sources and options with the recorded ones."""
        begun = _read_json(self.path / UNFINISHED)
        advice = f"Remove {self.path} to start over, or choose another --output"
        if begun.get("format") != plan["format"]:
            raise DataError(f"{self.path} was started by another version. {advice}")
        for name, value in plan["settings"].items():
            if (before := begun["settings"].get(name, _EARLIER.get(name))) != value:
                raise DataError(
                    f"{self.path} was started with {name} = {_short(before)}, not {_short(value)}. {advice}"
                )
        before, now = ({name: facts for name, *facts in sources} for sources in (begun["sources"], plan["sources"]))
        for name in [*before, *now]:
            if before.get(name) != now.get(name):
                change = "has changed" if name in now and name in before else "is new" if name in now else "is gone"
                raise DataError(f"{self.path} was started with other sources: {name} {change}. {advice}")
        if begun["sources"] != json.loads(json.dumps(plan["sources"])):
            raise DataError(f"{self.path} was started with the same sources in another order. {advice}")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {file}: {error}") from error


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
