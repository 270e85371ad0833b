"""The chat template that a run keeps in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml.errors import UserError
from ml.run_files import read_json

if TYPE_CHECKING:
    from ml.data import Data

CHAT_TEMPLATE = "chat_template.json"


def kept_chat_template(data: Data) -> dict[str, Any] | None:
    """Returns what a run keeps of the chat template of its data; None if its parameters are all of it.

    Raises:
        DataError: A file cannot be read.
    """
    return None if data.chat_template is None else data.chat_template.kept(data.tokenizer)


def restore_chat_template(data: Data, run: Path, *, only_if_missing: bool) -> None:
    """Uses the copy of a chat template in the folder of a run, so that its tokens are those of training.

    Args:
        data: The data of the run.
        run: The folder of the run.
        only_if_missing: True uses it only where the files of the template cannot be read.

    Raises:
        UserError: The copy is damaged.
    """
    file = run / CHAT_TEMPLATE
    if data.chat_template is None or not file.is_file():
        return
    try:
        kept = read_json(file)
        if not isinstance(kept, dict):
            raise UserError("it is not an object")
        data.chat_template.restore(kept, only_if_missing=only_if_missing)
    except (OSError, UserError) as error:
        raise UserError(f"{file} cannot be used: {error}") from error
