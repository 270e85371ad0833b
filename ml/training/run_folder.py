"""The folder of a run."""

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml.config.code import CODE_FOLDER
from ml.config.components import Component
from ml.data.tokenizers import Tokenizer
from ml.files import LockedError, locked, write_atomically
from ml.run_files import read_json, read_records, require_self_contained
from ml.training.environment import describe_environment
from ml.training.errors import RunError, RunFailure
from ml.training.history import append_start, read_starts
from ml.training.run_tokenizer import write_run_tokenizer


class RunFolder:
    """Paths of the files of a run: configuration, environment, metrics and checkpoints.

    The constructor does not touch the file system; `create` creates the folder.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.gin"
        self.operative = self.path / "operative_config.gin"
        self.provenance = self.path / "provenance.json"
        self.environment = self.path / "environment.json"
        self.history_file = self.path / "history.jsonl"
        self.metrics_file = self.path / "metrics.jsonl"
        self.chat_template = self.path / "chat_template.json"
        self.checkpoints = self.path / "checkpoints"
        self.profiles = self.path / "profiles"
        self.imported = self.path / "imported"

    def create(self) -> None:
        """Creates the folder if it does not exist.

        Raises:
            UserError: A symbolic link leaves it.
            RunFailure: It cannot be created.
        """
        require_self_contained(self.path)
        with self._disk("create"):
            self.checkpoints.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Prevents other processes from training in the folder; the system releases the lock when this process ends.

        Raises:
            RunError: Another process is training in it.
        """
        try:
            with locked(self.path, kept_by_children=True):
                yield
        except LockedError:
            message = f"another process is training in {self.path}: stop it, or name another --run_dir"
            raise RunError(message) from None

    def remove_code(self) -> None:
        """Removes the copy of custom code, which a dry run of another configuration left."""
        shutil.rmtree(self.path / CODE_FOLDER, ignore_errors=True)

    def write_config(
        self, config_gin: str, operative: str, provenance: Mapping[str, Any], code: Iterable[Component] = ()
    ) -> None:
        """Writes the configuration of the run.

        Args:
            config_gin: Text of the bindings that were set.
            operative: Text of the operative config.
            provenance: The origin of each value.
            code: Modules outside installed packages, whose source is copied.

        Raises:
            RunFailure: A file cannot be written.
        """
        with self._disk("write the configuration to"):
            write_atomically(self.config, config_gin)
            write_atomically(self.operative, operative)
            write_atomically(self.provenance, json.dumps(provenance, indent=1) + "\n")
            for component in code:
                file = self.path / CODE_FOLDER / component.file
                file.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(file, component.source)

    def write_imported(self, files: Mapping[str, bytes]) -> None:
        """Keeps files of the checkpoint that the run starts from, for its export.

        Args:
            files: Their content by name.

        Raises:
            RunFailure: A file cannot be written.
        """
        with self._disk("write to"):
            if files:
                self.imported.mkdir(exist_ok=True)
            for name, content in files.items():
                write_atomically(self.imported / name, content)

    def imported_files(self) -> dict[str, bytes]:
        """Reads the files of `write_imported`, by name; empty for a run that started from no such checkpoint."""
        require_self_contained(self.path)
        return {file.name: file.read_bytes() for file in sorted(self.imported.glob("[!.]*")) if file.is_file()}

    def operative_config(self) -> str | None:
        """Reads `operative_config.gin`; None in a folder without a run."""
        require_self_contained(self.path)
        try:
            return self.operative.read_text("utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(f"{self.operative} cannot be read: {error}") from error

    def write_chat_template(self, record: Mapping[str, Any]) -> None:
        """Writes the copy of a chat template that is in files.

        Args:
            record: The copy, from `ChatTemplate.kept`.

        Raises:
            RunFailure: It cannot be written.
        """
        with self._disk("write the chat template to"):
            write_atomically(self.chat_template, json.dumps(record, indent=1) + "\n")

    def write_tokenizer(self, tokenizer: Tokenizer) -> str | None:
        """Writes a copy of the tokenizer of the run to `tokenizer/`.

        Args:
            tokenizer: The tokenizer of the training data.

        Returns:
            Why there is no copy; None if there is one.

        Raises:
            RunFailure: It cannot be written.
        """
        with self._disk("write the tokenizer to"):
            return write_run_tokenizer(self.path, tokenizer)

    def write_environment(self, **facts: Any) -> None:
        """Records the environment of this start of the run; earlier starts are kept, oldest first.

        Args:
            facts: Further facts by name, as JSON values.
        """
        earlier = []
        with contextlib.suppress(FileNotFoundError):
            last = read_json(self.environment)
            if isinstance(last, dict):
                earlier = [*last.pop("earlier", []), last]
        found = {**describe_environment(), **facts, "earlier": earlier}
        with self._disk("write to"):
            write_atomically(self.environment, json.dumps(found, indent=1) + "\n")

    @property
    def is_begun(self) -> bool:
        """True once a run has started in the folder, and not only a dry run."""
        is_recorded = any(file.exists() and file.stat().st_size for file in (self.history_file, self.metrics_file))
        return self.operative.exists() and (is_recorded or any(self.checkpoints.glob("step_*")))

    def append_history(self, record: Mapping[str, Any]) -> None:
        """Appends the record of a start to `history.jsonl` and flushes it to disk.

        Args:
            record: The record, from `describe_start`.

        Raises:
            RunFailure: The file cannot be written.
        """
        with self._disk("write the history to"):
            append_start(self.history_file, record)

    def history(self) -> list[dict[str, Any]]:
        """Reads the records of all starts, oldest first."""
        return read_starts(self.history_file)

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Appends a line to `metrics.jsonl` and closes the file.

        Args:
            record: The metrics of a step.

        Raises:
            RunFailure: The file cannot be written.
        """
        with self._disk("write metrics to"), self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Reads all complete lines of `metrics.jsonl`; skips a line truncated by a crash.

        Raises:
            UserError: A line is damaged.
        """
        return list(read_records(self.metrics_file))

    def truncate_metrics(self, step: int) -> None:
        """Removes the metrics after `step`, because those steps are taken again.

        Raises:
            UserError: A line before them is damaged.
        """
        before = itertools.takewhile(lambda record: record["step"] <= step, read_records(self.metrics_file))
        kept = [json.dumps(record) + "\n" for record in before]
        with self._disk("write metrics to"):
            write_atomically(self.metrics_file, "".join(kept))

    def flush_metrics(self) -> None:
        """Flushes the metrics to disk."""
        with self._disk("write metrics to"), self.metrics_file.open("a") as file:
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def _disk(self, verb: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunFailure(f"cannot {verb} {self.path}: {error.strerror}") from error


class ReadOnlyRunFolder(RunFolder):
    """The run folder in a process that does not own it: nothing is created, locked or written."""

    def create(self) -> None:
        pass

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        yield

    def write_config(
        self, config_gin: str, operative: str, provenance: Mapping[str, Any], code: Iterable[Component] = ()
    ) -> None:
        pass

    def write_imported(self, files: Mapping[str, bytes]) -> None:
        pass

    def write_chat_template(self, record: Mapping[str, Any]) -> None:
        pass

    def write_tokenizer(self, tokenizer: Tokenizer) -> str | None:
        return None

    def write_environment(self, **facts: Any) -> None:
        pass

    def append_history(self, record: Mapping[str, Any]) -> None:
        pass

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        pass

    def truncate_metrics(self, step: int) -> None:
        pass

    def flush_metrics(self) -> None:
        pass
