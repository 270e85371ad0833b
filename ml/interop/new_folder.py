"""Folders that are whole or not there."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml.files import flush_to_disk, reason_of
from ml.interop.errors import InteropError


def write_json(file: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Writes a JSON file with sorted keys."""
    file.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yields a folder that takes its name once the block is left without an error.

    Args:
        folder: The folder, which must not exist or be empty.

    Raises:
        InteropError: There is something, or it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InteropError(f"{folder} exists: name a new folder")
    if not folder.parent.is_dir():
        raise InteropError(f"there is no folder {folder.parent}")
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        flush_to_disk(temporary)
        os.replace(temporary, folder)
        flush_to_disk(folder.parent)
    except InteropError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    except Exception as error:  # safetensors raises its own error for a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) or "SafetensorError" in type(error).__name__:
            raise InteropError(f"cannot write {folder}: {reason_of(error)}") from error
        raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
