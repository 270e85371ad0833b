"""Prepared conversations: tokenized once by `python -m ml prepare_chat`, and read by memory map.

A prepared folder contains

    manifest.json         description of the content, see below; written last
    tokens                one unsigned little-endian integer per token of all conversations
    targets               one byte per token: 1 for a token to predict
    conversations.ends    end of each conversation in the stream of tokens, int64
    conversations.first   position of the first target in each conversation, after its first token; int64
    conversations.names   SHA-256 of each conversation, 32 bytes, which selects the held-out split

The manifest is an object with "format", "dtype", "num_tokens", "num_conversations", "chat" (the hash of template and
tokenizer, `chat_sha256`) and "files" with the SHA-256 of each file.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from ml.data.chat.encoding import ChatFormat
from ml.data.chat.messages import Completion, Conversation, Message
from ml.data.errors import DataError, MissingData

MANIFEST = "manifest.json"
FORMAT = "juniper conversations 1"
TOKENS, TARGETS = "tokens", "targets"
ENDS, FIRST, NAMES = "conversations.ends", "conversations.first", "conversations.names"
NAME_BYTES = 32
ITEM_BYTES = {TARGETS: 1, ENDS: 8, FIRST: 8, NAMES: NAME_BYTES}

_SAID = [("user", "Hi\n"), ("assistant", "Hello!"), ("user", "1 + 1 = ?"), ("assistant", " 2")]
_PROBES = (
    Conversation("", tuple(Message(role, {"role": role, "content": text}) for role, text in _SAID)),
    Conversation("", (Message("system", {"role": "system", "content": "Be brief."}), *(
        Message(role, {"role": role, "content": text}) for role, text in _SAID[2:]
    ))),
    Conversation("", Completion("2 + 2 =", " 4")),
)  # fmt: skip


def chat_sha256(chat: ChatFormat) -> str:
    """Hashes the identity of a tokenizer, and what it and a template make of a few conversations."""
    chat.template.load(chat.tokenizer)
    digest = hashlib.sha256(f"{type(chat.template).__name__} {chat.tokenizer.identity}\n".encode())
    for found in chat.examples(_PROBES):
        if isinstance(found, DataError):
            digest.update(b"refused\n")
        else:
            digest.update(found.tokens.astype("<u4").tobytes() + found.is_target.tobytes())
    return digest.hexdigest()


class ConversationFolder:
    """Reader of a prepared folder.

    Attributes:
        path: The folder.
        tokens: Tokens of all conversations, (tokens,), mapped into memory.
        targets: Marks the tokens to predict, (tokens,) bool, mapped into memory.
        ends: Position after the last token of each conversation, (conversations,).
        first: Position of the first target in each conversation, or its length if there is none, (conversations,).
    """

    def __init__(self, path: str | Path):
        """Reads the manifest, and compares the sizes of all files with it.

        Raises:
            DataError: The folder is missing, incomplete or of another format, or a file is truncated.
        """
        self.path = Path(path)
        self.manifest = _read_manifest(self.path)
        num_tokens, count = self.manifest["num_tokens"], self.manifest["num_conversations"]
        dtype = np.dtype(self.manifest["dtype"])
        self.tokens = self._mapped(TOKENS, dtype, num_tokens)
        self.targets = self._mapped(TARGETS, np.dtype(bool), num_tokens)
        self.ends = np.array(self._mapped(ENDS, np.dtype("<i8"), count), dtype=np.int64)
        self.first = np.array(self._mapped(FIRST, np.dtype("<i8"), count), dtype=np.int64)

    def names(self) -> list[str]:
        """Returns the hash of each conversation."""
        digests = self._mapped(NAMES, np.dtype("u1"), self.manifest["num_conversations"] * NAME_BYTES).tobytes().hex()
        return [digests[first : first + 2 * NAME_BYTES] for first in range(0, len(digests), 2 * NAME_BYTES)]

    def require(self, chat: ChatFormat) -> None:
        """Requires that the conversations were tokenized as `chat` does.

        Raises:
            DataError: They were tokenized with another template, tokenizer, separator or begin token.
        """
        if self.manifest["chat"] != chat_sha256(chat):
            raise DataError(
                f"{self.path} was prepared with another template, tokenizer, separator or begin token than those of "
                "ChatData: run `python -m ml prepare_chat` again, or set ChatData.prepared = None"
            )

    def verify(self) -> None:
        """Reads all files and checks their hashes.

        Raises:
            DataError: A file has changed.
        """
        for name, expected in self.manifest["files"].items():
            with (self.path / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != expected:
                raise DataError(f"{self.path / name} has changed: its SHA-256 is {found}, expected {expected}")

    def _mapped(self, name: str, dtype: np.dtype[Any], count: int) -> np.ndarray:
        file = self.path / name
        try:
            size = file.stat().st_size
            if size != count * dtype.itemsize:
                raise DataError(f"{file} has {size:,} bytes, expected {count * dtype.itemsize:,}: it was truncated")
            return np.memmap(file, dtype, "r", shape=(count,)) if count else np.zeros(0, dtype)
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror or error}") from error


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise MissingData(f"{folder} has no prepared conversations; make them with `python -m ml prepare_chat`")
    try:
        manifest = json.loads(path.read_text("utf-8"))
        if manifest["format"] != FORMAT:
            raise DataError(f"{path} has the format {manifest['format']!r}, expected {FORMAT!r}")
        np.dtype(manifest["dtype"])
        counts = [int(manifest[name]) for name in ("num_tokens", "num_conversations")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    if min(counts) < 0:
        raise DataError(f"{path} is damaged: a count is negative")
    return manifest
