"""The history of a run, `history.jsonl`: one record for each start."""

import datetime
import getpass
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml.run_files import read_records
from ml.version import __version__


def describe_start(step: int, segment: int, changed: Sequence[str]) -> dict[str, Any]:
    """Returns the record of a start: when, by whom, from where, and what was changed.

    Args:
        step: The last step before it.
        segment: The step after which the segment in force begins; 0 for the first.
        changed: Values that the start changed, `- line` and `+ line` of the operative config.
    """
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "user": _user(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "version": __version__,
        "command": [sys.executable, *sys.argv],
        "first_step": step + 1,
        "segment": segment,
        "changed": list(changed),
    }


def append_start(path: Path, record: Mapping[str, Any]) -> None:
    """Appends a record as a line, in place of a line that a crash truncated."""
    with path.open("ab+") as file:
        file.seek(0)
        whole = file.read().rpartition(b"\n")
        file.truncate(len(whole[0]) + len(whole[1]))
        file.write(json.dumps(dict(record)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_starts(path: Path) -> list[dict[str, Any]]:
    """Reads all records, oldest first; skips a last line that a crash truncated.

    Raises:
        UserError: The file cannot be read, or a line is damaged; the message names file and line.
    """
    return list(read_records(path, required="first_step"))


def _user() -> str:
    """The name of the user, or the number of one without a name, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
