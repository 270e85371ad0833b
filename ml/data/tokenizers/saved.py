"""Tokenizers stored with the tokens that they produced.

The record is `{"name", "arguments", "files"}`: the configurable, the arguments of its constructor, and the arguments
that are files, `{argument: {"file", "sha256"}}`. The files are in a separate folder.
"""

from pathlib import Path
from typing import Any

from ml.config.configurable import candidates, find
from ml.data.errors import DataError
from ml.data.tokenizers.base import Tokenizer
from ml.files import sha256_of_file


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """Writes the files of a tokenizer and returns the record that `open_tokenizer` takes.

    Args:
        tokenizer: The tokenizer.
        folder: Folder for the files; created if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arguments, files = tokenizer.save(folder)
    info = find(type(tokenizer))
    assert info is not None, f"{type(tokenizer).__name__} is not configurable"
    return {
        "name": info.name,
        "arguments": arguments,
        "files": {
            argument: {"file": file, "sha256": sha256_of_file(folder / file)} for argument, file in files.items()
        },
    }


def open_tokenizer(saved: dict[str, Any], folder: Path, identity: str | None = None) -> Tokenizer:
    """Reconstructs a saved tokenizer; its files are read on first use.

    Args:
        saved: Record returned by `save_tokenizer`.
        folder: Folder of the files.
        identity: Its identity where it is recorded, which spares computing it; None computes it.

    Raises:
        DataError: The class of the tokenizer is not registered.
    """
    known = [info for info in candidates(saved["name"]) if is_tokenizer(info.target)]
    if len(known) != 1:
        raise DataError(
            f"{folder.parent} was made with the tokenizer {saved['name']}, which is not registered: "
            "import the module that defines it"
        )
    files = {argument: str(folder / kept["file"]) for argument, kept in saved["files"].items()}
    tokenizer = known[0].target(**saved["arguments"], **files)
    if identity is not None:
        tokenizer.identity = identity
    return tokenizer


def verify_tokenizer(saved: dict[str, Any], folder: Path) -> list[str]:
    """Returns the problems with the files of a saved tokenizer."""
    problems = []
    for kept in saved["files"].values():
        file = folder / kept["file"]
        try:
            sha256 = sha256_of_file(file)
        except OSError as error:
            problems.append(f"cannot read {file}: {error.strerror}")
            continue
        if sha256 != kept["sha256"]:
            problems.append(f"{file} has changed: its SHA-256 is {sha256}, expected {kept['sha256']}")
    return problems


def is_tokenizer(target: Any) -> bool:
    """Returns True if the target of a configurable is a tokenizer class."""
    return isinstance(target, type) and issubclass(target, Tokenizer)
