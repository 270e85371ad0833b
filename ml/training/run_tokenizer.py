"""Tokenizer of a run, of which the run folder keeps a copy."""

import json
from pathlib import Path
from typing import Any

from ml.config.configurable import find
from ml.data import DataError
from ml.data.tokenizers import Tokenizer
from ml.data.tokenizers.saved import open_tokenizer, save_tokenizer
from ml.files import write_atomically
from ml.run_files import TOKENIZER, require_self_contained

_RECORD = "record.json"


def write_run_tokenizer(run: Path, tokenizer: Tokenizer) -> str | None:
    """Writes a copy of the tokenizer of a run to `tokenizer/` in its folder.

    Args:
        run: The folder of the run.
        tokenizer: The tokenizer of its training data.

    Returns:
        Why there is no copy; None if there is one.

    Raises:
        OSError: It cannot be written.
    """
    if find(type(tokenizer)) is None:
        return f"{type(tokenizer).__name__} is not configurable"
    folder = run / TOKENIZER
    try:
        record = {**save_tokenizer(tokenizer, folder), "identity": tokenizer.identity}
    except DataError as error:
        return str(error)
    write_atomically(folder / _RECORD, json.dumps(record, indent=1) + "\n")
    return None


def read_run_tokenizer(run: Path) -> Tokenizer | None:
    """Opens the tokenizer that a run folder keeps; its files are read on first use.

    Args:
        run: The folder of a run, of its checkpoints, or of one of them.

    Returns:
        The tokenizer; None in the folder of a run of release 0.1.0, which kept none.

    Raises:
        UserError: The record is damaged, or a symbolic link leaves the folder.
    """
    parents = [folder.parent for folder in (run.absolute(), run.absolute().parent) if folder.name == "checkpoints"]
    for folder in (run, *parents):
        if (folder / TOKENIZER / _RECORD).is_file():
            require_self_contained(folder)
            return _opened(folder / TOKENIZER)
    return None


def _opened(folder: Path) -> Tokenizer:
    try:
        record: dict[str, Any] = json.loads((folder / _RECORD).read_text("utf-8"))
        if any(Path(kept["file"]).name != kept["file"] for kept in record["files"].values()):
            raise ValueError("a file is outside of its folder")
        return open_tokenizer(record, folder, record["identity"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{folder / _RECORD} is damaged: {type(error).__name__}: {error}") from error
