"""Folders of the library `datasets`: which of their files are data.

`save_to_disk` writes Arrow files with `state.json` and `dataset_info.json`, or one such folder for each split with
`dataset_dict.json`. The cache of the library has Arrow files of all splits with `dataset_info.json`, and results of
transformations in files `cache-*.arrow`.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ml.data.errors import DataError
from ml.data.reading.files import FoundFile

_INFO, _STATE, _SPLITS = "dataset_info.json", "state.json", "dataset_dict.json"


def without_descriptions(files: Iterable[FoundFile], pattern_option: str) -> Iterator[FoundFile]:
    """Yields files, of folders of `datasets` only the data.

    Args:
        files: Found files.
        pattern_option: Option that selects files by name, named in errors.

    Raises:
        DataError: The files are those of several splits, or a folder cannot be read.
    """
    splits: dict[Path, set[str]] = defaultdict(set)
    described: dict[Path, dict[str, str | None] | None] = {}
    for file in files:
        folder = file.path.parent
        if (folder / _SPLITS).is_file() and file.path.name == _SPLITS:
            continue
        if folder not in described:
            described[folder] = _data_files(folder)
        data = described[folder]
        if data is not None and file.path.name not in data:
            continue
        if (folder.parent / _SPLITS).is_file():
            splits[folder.parent].add(folder.name)
            _require_one(folder.parent, splits[folder.parent], f"name one of them, such as {folder}")
        elif data is not None and (split := data[file.path.name]) is not None:
            splits[folder].add(split)
            _require_one(folder, splits[folder], f'choose one, such as {pattern_option}="*-{split}*"')
        yield file


def _require_one(folder: Path, splits: set[str], advice: str) -> None:
    if len(splits) > 1:
        raise DataError(f"{folder} has the splits {', '.join(sorted(splits))}: {advice}")


def _data_files(folder: Path) -> dict[str, str | None] | None:
    """Returns the data files of a folder of `datasets`, each with its split if the name has one; None for others."""
    if (folder / _INFO).is_file() and (folder / _STATE).is_file():
        state = _read(folder / _STATE)
        if state.get("_indices_files"):
            raise DataError(f"{folder} selects rows by an index; write it again with flatten_indices and save_to_disk")
        return {file["filename"]: None for file in state.get("_data_files", [])}
    tables = [file.name for file in folder.glob("*.arrow") if not file.name.startswith("cache-")]
    if not tables or not (folder / _INFO).is_file():
        return None
    names = _read(folder / _INFO).get("splits") or {}
    endings = {name: re.compile(rf"-{re.escape(name)}(-\d+-of-\d+)?\.arrow$") for name in names}
    return {table: next((name for name, ending in endings.items() if ending.search(table)), None) for table in tables}


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {file}: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{file} is not a description of a dataset")
    return content
