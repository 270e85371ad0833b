"""Settings in the tokenizer_config.json of a Hugging Face folder."""

import json
from pathlib import Path
from typing import Any, Self

from ml.data.errors import DataError

CONFIG_FILE = "tokenizer_config.json"


class TokenizerConfig(dict[str, Any]):
    """Content of a tokenizer_config.json; empty if there is none."""

    @classmethod
    def beside(cls, file: Path) -> Self:
        """Reads the tokenizer_config.json in the folder of a file.

        Raises:
            DataError: It cannot be read.
        """
        path = file.parent / CONFIG_FILE
        if not path.is_file():
            return cls()
        try:
            return cls(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"cannot read {path}: {error}") from None

    def named(self, key: str) -> str | None:
        """Returns the text of a special token, such as that of "eos_token"; None if it has none."""
        token = self.get(key)
        return token.get("content") if isinstance(token, dict) else token
