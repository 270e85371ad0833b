"""What a preparation keeps on disk to go on from when it is stopped."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ml.data.errors import DataError
from ml.data.preparation.cutting import Position
from ml.data.preparation.sources import Source
from ml.data.token_files.reading import MANIFEST, UNFINISHED
from ml.files import LockedError, locked, write_atomically

_PROGRESS = "progress.json"
_LOCK = ".lock"
_FORMAT = "juniper preparation 1"


@dataclass
class Progress:
    """How far a preparation is.

    position: in the sources. writers: of each part, the position of its writer. counts: what was left out or replaced.
    num_bytes: of the source files that are behind.
    """

    position: Position
    writers: list[dict[str, Any] | None]
    counts: dict[str, int]
    num_bytes: int


class OutputFolder:
    """The folder that a preparation writes to.

    preparation.json says what is prepared and how, and stays. progress.json is there from the first commit until the
    preparation is done.
    """

    def __init__(self, path: Path):
        self.path = path

    @contextmanager
    def begun(
        self, settings: dict[str, Any], sources: Sequence[Source], parts: Sequence[Path]
    ) -> Iterator[Progress | None]:
        """Makes the folder or takes up the one that is there, and keeps others out of it; None where all is done.

        Args:
            settings: What else decides the output.
            sources: What is prepared.
            parts: The folders of token files that are to be written.

        Raises:
            DataError: It holds something else, another preparation, one of sources that have changed since, or one that
                is running.
            OSError: It cannot be written to.
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
            raise DataError(f"another process prepares {self.path} at this moment") from None

    def _progress(self, parts: Sequence[Path]) -> Progress | None:
        if (self.path / _PROGRESS).exists():
            kept = _read_json(self.path / _PROGRESS)
            return Progress(Position(*kept["position"]), kept["writers"], kept["counts"], kept["num_bytes"])
        if all((part / MANIFEST).exists() for part in parts):
            return None
        return Progress(Position(), [None] * len(parts), {}, 0)

    def write(self, progress: Progress) -> None:
        """Replaces what was known of the progress; what the writers say must be on disk already."""
        write_atomically(self.path / _PROGRESS, json.dumps(asdict(progress)) + "\n")

    def end(self) -> None:
        """Everything is done."""
        (self.path / _PROGRESS).unlink(missing_ok=True)

    def _refuse_something_else(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise DataError(f"{self.path} (--output) is not a folder")
        ours = {_LOCK, f".{UNFINISHED}.tmp"}  # where it was killed as it began
        if not self.path.is_dir() or (self.path / UNFINISHED).exists():
            return
        others = sorted(file.name for file in self.path.iterdir() if file.name not in ours)
        if others:
            raise DataError(f"{self.path} (--output) holds something else, such as {others[0]}: name another folder")

    def _compare(self, plan: dict[str, Any]) -> None:
        """Compares what is prepared, and how, with what was begun."""
        begun = _read_json(self.path / UNFINISHED)
        anew = f"Remove {self.path} to begin anew, or name another --output"
        if begun.get("format") != plan["format"]:
            raise DataError(f"{self.path} was begun by another version. {anew}")
        for name, value in plan["settings"].items():
            if (before := begun["settings"].get(name)) != value:
                raise DataError(f"{self.path} was begun with {name} = {_short(before)}, not {_short(value)}. {anew}")
        before, now = ({name: facts for name, *facts in sources} for sources in (begun["sources"], plan["sources"]))
        for name in [*before, *now]:
            if before.get(name) != now.get(name):
                what = "has changed since" if name in now and name in before else "is new" if name in now else "is gone"
                raise DataError(f"{self.path} was begun with other sources: {name} {what}. {anew}")
        if begun["sources"] != json.loads(json.dumps(plan["sources"])):
            raise DataError(f"{self.path} was begun with the same sources in another order. {anew}")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {file}: {error}") from error


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
