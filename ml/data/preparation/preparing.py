"""Preparation of token files, in constant memory and resumable."""

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from ml.data.errors import DataError
from ml.data.preparation.cutting import tasks
from ml.data.preparation.encoding import Encoded, Encoder, encoded
from ml.data.preparation.holdout import HeldOut, hold_out_files
from ml.data.preparation.progress_file import OutputFolder, Progress
from ml.data.reading.options import COUNTS, Reading
from ml.data.reading.sources import Source
from ml.data.token_files.reading import TokenFolder
from ml.data.token_files.writing import TokenWriter
from ml.data.tokenizers import Tokenizer
from ml.data.tokenizers.saved import save_tokenizer
from ml.errors import RunFailure

_MAX_NOTES = 3  # messages of a kind
_SECONDS_BETWEEN_COMMITS = 1.0
_SPLITS = ("train", "validation")


class Display(Protocol):
    """Progress display of a preparation."""

    def start(self, num_bytes: int, total_bytes: int) -> None:
        """Starts the display; `num_bytes` of `total_bytes` are already done."""

    def advance(self, num_bytes: int, num_tokens: int) -> None:
        """Updates the totals: bytes of the source files that are done, and tokens written."""

    def say(self, message: str) -> None:
        """Prints a message that stays visible."""


@dataclass(frozen=True)
class Settings:
    """Options of a preparation.

    Attributes:
        output: Folder to write.
        reading: Options of reading.
        shard_tokens: Tokens per shard.
        num_workers: Worker processes; the output does not depend on it.
    """

    output: Path
    reading: Reading
    shard_tokens: int = 2**30
    num_workers: int = 1


@dataclass(frozen=True)
class Summary:
    """Result of a preparation.

    Attributes:
        folders: Prepared folders.
        counts: Number of findings of each kind.
        seconds: Duration; None if the output was already complete.
    """

    folders: list[TokenFolder]
    counts: dict[str, int]
    seconds: float | None


def prepare(sources: Sequence[Source], tokenizer: Tokenizer, settings: Settings, display: Display) -> Summary:
    """Writes the token files of `sources`, or the rest of them after an interruption.

    With a held-out split, the folders are `train/` and `validation/` in the output folder, otherwise the output folder
    itself. `ml.data.token_files.reading` documents the format.

    Args:
        sources: Files to read.
        tokenizer: Tokenizer of the text.
        settings: Options.
        display: Progress display.

    Raises:
        DataError: The sources cannot be read or have no document, or the folder contains something else.
        RunFailure: The disk is full or cannot be written to, or a worker was killed; the same command resumes.
    """
    start = time.monotonic()
    fraction = settings.reading.validation_fraction
    paths = [settings.output / part for part in _SPLITS] if fraction else [settings.output]
    folder = OutputFolder(settings.output)
    with (
        _failures_as_messages(settings.output),
        folder.begun(_plan(settings, tokenizer), sources, paths) as progress,
    ):
        if progress is None:
            return _summary(paths, sources, None)
        held_out = hold_out_files(sources, fraction, settings.reading.hold_out_by)
        _report_shared(held_out, progress, display)
        display.start(progress.num_bytes, sum(source.size for source in sources))
        with _writers(paths, tokenizer, settings.shard_tokens, progress) as writers:
            run = _Run(folder, writers, progress, display)
            field, safe_cut = settings.reading.field, tokenizer.safe_cut
            remaining = tasks(sources, held_out, field, safe_cut, progress.position)
            run.write_all(encoded(remaining, Encoder(tokenizer, settings.reading), settings.num_workers))
            for source in sources:
                source.check_unchanged()
            _finish(run, sources)
        folder.end()
    return _summary(paths, sources, time.monotonic() - start)


class _Run:
    """State of a running preparation, and its commits."""

    def __init__(self, folder: OutputFolder, writers: list[TokenWriter], progress: Progress, display: Display):
        self.folder = folder
        self.writers = writers
        self.progress = progress
        self.display = display
        self._notes: dict[str, int] = {}
        self._committed_at = time.monotonic()

    def write_all(self, results: Iterator[tuple[Any, Encoded]]) -> None:
        """Writes results, and commits before any error so that the next run resumes from here."""
        try:
            for task, result in results:
                self._write(result)
                self.progress.position = task.end
                self.progress.num_bytes += task.num_bytes
                self.display.advance(self.progress.num_bytes, sum(writer.num_tokens for writer in self.writers))
                if time.monotonic() - self._committed_at > _SECONDS_BETWEEN_COMMITS:
                    self.commit()
        except (DataError, RunFailure, KeyboardInterrupt):
            self.commit()
            raise

    def commit(self) -> None:
        """Flushes the tokens to disk, then records the progress."""
        self.progress.writers = [writer.commit() for writer in self.writers]
        self.folder.write(self.progress)
        self._committed_at = time.monotonic()

    def _write(self, result: Encoded) -> None:
        for part, stream in result.streams.items():
            self.writers[part].append(stream.tokens, stream.ends, stream.num_bytes)
        for kind, count in result.findings.counts.items():
            self.progress.counts[kind] = self.progress.counts.get(kind, 0) + count
        for kind, notes in result.findings.notes.items():
            for note in notes[: max(0, _MAX_NOTES - self._notes.get(kind, 0))]:
                self.display.say(note)
            self._notes[kind] = self._notes.get(kind, 0) + len(notes)


def _report_shared(held_out: HeldOut, progress: Progress, display: Display) -> None:
    if held_out.num_shared:
        progress.counts["shared_files"] = held_out.num_shared
        advice = "--hold_out_by=content keeps equal files on one side"
        display.say(f"{held_out.num_shared:,} {COUNTS['shared_files']}; {advice}")


def _finish(run: _Run, sources: Sequence[Source]) -> None:
    if not any(writer.num_documents for writer in run.writers):
        skipped = ", ".join(f"{count:,} {COUNTS[kind]}" for kind, count in run.progress.counts.items())
        raise DataError(f"there is no document in {len(sources):,} files{f': {skipped}' if skipped else ''}")
    text = {"sources": len(sources), "source_bytes": sum(source.size for source in sources)}
    text |= {kind: run.progress.counts.get(kind, 0) for kind in COUNTS}
    for writer in run.writers:
        writer.finish(text)


def _plan(settings: Settings, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns everything besides the sources that determines the output; handling of invalid text may change."""
    with tempfile.TemporaryDirectory() as folder:
        saved = save_tokenizer(tokenizer, Path(folder))
    reading = asdict(settings.reading)
    decides = {name: reading[name] for name in ("text_key", "validation_fraction", "hold_out_by")}
    return {"tokenizer": saved, **decides, "shard_tokens": settings.shard_tokens}


@contextlib.contextmanager
def _writers(
    paths: list[Path], tokenizer: Tokenizer, shard_tokens: int, progress: Progress
) -> Iterator[list[TokenWriter]]:
    with contextlib.ExitStack() as stack:
        writers = []
        for path, at in zip(paths, progress.writers, strict=True):
            writers.append(TokenWriter(path, tokenizer, shard_tokens, at))
            stack.callback(writers[-1].close)
        yield writers


@contextlib.contextmanager
def _failures_as_messages(output: Path) -> Iterator[None]:
    resume = "Run the same command again to resume"
    try:
        yield
    except OSError as error:
        raise RunFailure(f"cannot write to {output}: {error.strerror or error}. {resume}") from error
    except KeyboardInterrupt:
        raise RunFailure(f"interrupted. {resume}") from None


def _summary(paths: list[Path], sources: Sequence[Source], seconds: float | None) -> Summary:
    folders = [TokenFolder(path) for path in paths]
    text = folders[0].manifest["text"]
    return Summary(folders, {kind: text[kind] for kind in COUNTS if text.get(kind)}, seconds)
