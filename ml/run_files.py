"""Checked reading of the files of a run folder: nothing in them is executed, and no link out of the folder is followed.

Imports no torch.
"""

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml.errors import UserError

_READ_OR_WRITTEN = (
    "config.gin",
    "operative_config.gin",
    "provenance.json",
    "environment.json",
    "history.jsonl",
    "metrics.jsonl",
    "samples.jsonl",
    "run_id.txt",
    "chat_template.json",
    "checkpoints",
    "segments",
    "code",
    "profiles",
    "tensorboard",
    "imported",
    "tokenizer",
)
TOKENIZER = "tokenizer"
SEGMENTS = "segments"
_FOLDERS = ("checkpoints", "segments", "code", "profiles", "tensorboard", "imported", "tokenizer")


def require_self_contained(folder: Path) -> None:
    """Requires that what Juniper reads and writes in a run folder is inside it; the folder itself may be a link.

    Args:
        folder: The folder; it may be missing.

    Raises:
        UserError: A symbolic link leaves the folder, or an entry is neither a file nor a folder.
    """
    root = os.path.realpath(folder)
    entries = [folder / name for name in _READ_OR_WRITTEN]
    for name in _FOLDERS:
        try:
            entries += (folder / name).iterdir()
        except OSError:  # there is none
            continue
    for entry in entries:
        _require_inside(entry, root)


def segment_folders(run: Path) -> dict[int, Path]:
    """Returns the folder of each segment by the step after which it begins, oldest first; empty for a single segment.

    Args:
        run: The folder of the run.
    """
    found = {path: re.fullmatch(r"step_(\d+)", path.name) for path in (run / SEGMENTS).glob("step_*")}
    is_whole = {path: (path / "operative_config.gin").is_file() for path in found}
    return dict(sorted((int(match[1]), path) for path, match in found.items() if match and is_whole[path]))


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: It is not JSON; the message names the file.
        OSError: It cannot be read.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def read_records(path: Path, required: str = "step") -> Iterator[dict[str, Any]]:
    """Yields the lines of a file of objects; the last one is skipped if a crash truncated it.

    Args:
        path: The file, such as `metrics.jsonl`; a missing one has no lines.
        required: The number that each object has, such as its step.

    Raises:
        UserError: The file cannot be read, or a line is damaged; the message names file and line.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                record, problem = parse_record(line, required)
                if record is not None:
                    yield record
                elif line.endswith(b"\n"):
                    raise UserError(f"{path}:{number} is damaged: {problem}; remove the line to go without it")
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def parse_record(line: bytes, required: str = "step") -> tuple[dict[str, Any] | None, str]:
    """Returns the object of a line; or None, and what is wrong with it."""
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return None, f"byte {error.start + 1} is not UTF-8"
    except (ValueError, RecursionError) as error:
        return None, f"it is not JSON ({error})"
    fits = isinstance(record, dict) and type(record.get(required)) is int
    return (record, "") if fits else (None, f"it is not an object with a {required.replace('_', ' ')}")


def _require_inside(entry: Path, root: str) -> None:
    try:
        mode = entry.lstat().st_mode
        if stat.S_ISLNK(mode):
            target = os.path.realpath(entry)
            if os.path.commonpath([target, root]) != root:
                raise UserError(f"{entry} is a symbolic link out of the run folder, to {target}: put a copy there")
            mode = entry.stat().st_mode
    except OSError:  # missing, removed by the process that trains, or a link to nothing
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UserError(f"{entry} is neither a file nor a folder")


def is_hugging_face_folder(folder: Path) -> bool:
    """Returns True for a folder with a config.json that is not the folder of a run."""
    return (folder / "config.json").is_file() and not (folder / "operative_config.gin").is_file()
