"""Tokenizers that are kept beside the tokens that they made.

What is kept is `{"name", "arguments", "files"}`: the configurable, the arguments of its constructor, and those that are
files, `{argument: {"file", "sha256"}}`. The files themselves are in a folder beside.
"""

from pathlib import Path
from typing import Any

from ml.config.configurable import candidates, find
from ml.data.errors import DataError
from ml.data.tokenizers.base import Tokenizer
from ml.files import sha256_of_file


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """Writes the files of a tokenizer into `folder` and returns what `open_tokenizer` needs to find it again."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments, files = tokenizer.save(folder)
    return {
        "name": find(type(tokenizer)).name,
        "arguments": arguments,
        "files": {
            argument: {"file": file, "sha256": sha256_of_file(folder / file)} for argument, file in files.items()
        },
    }


def open_tokenizer(saved: dict[str, Any], folder: Path) -> Tokenizer:
    """The tokenizer that was saved; its files are read when it is first used.

    Raises:
        DataError: It is of a kind that is not known here.
    """
    known = [info for info in candidates(saved["name"]) if is_tokenizer(info.target)]
    if len(known) != 1:
        raise DataError(
            f"{folder.parent} was made with the tokenizer {saved['name']}, which is not known here: "
            "import the module that defines it"
        )
    files = {argument: str(folder / kept["file"]) for argument, kept in saved["files"].items()}
    return known[0].target(**saved["arguments"], **files)


def verify_tokenizer(saved: dict[str, Any], folder: Path) -> list[str]:
    """What is wrong with the files of a saved tokenizer."""
    problems = []
    for kept in saved["files"].values():
        file = folder / kept["file"]
        try:
            sha256 = sha256_of_file(file)
        except OSError as error:
            problems.append(f"cannot read {file}: {error.strerror}")
            continue
        if sha256 != kept["sha256"]:
            problems.append(f"{file} has changed: its SHA-256 is {sha256}, the manifest says {kept['sha256']}")
    return problems


def is_tokenizer(target: Any) -> bool:
    """Whether a configurable is a tokenizer."""
    return isinstance(target, type) and issubclass(target, Tokenizer)
