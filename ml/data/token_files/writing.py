"""Writer of token files; `ml.data.token_files.reading` documents the format."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ml.data.token_files.reading import (
    DTYPES,
    END_DTYPE,
    FORMAT,
    MANIFEST,
    TOKENIZER_FOLDER,
    data_sha256,
    smallest_dtype,
)
from ml.data.tokenizers import Tokenizer
from ml.data.tokenizers.saved import save_tokenizer
from ml.files import flush_to_disk, write_atomically

_ENDS_FILE = "documents.ends"
_HASHED_AT_ONCE = 2**22


class TokenWriter:
    """Appends tokens to a stream, in shards of `shard_tokens` each.

    `commit` makes everything durable and returns a position. A writer opened `at` that position discards what was
    written after it.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, shard_tokens: int, at: dict[str, Any] | None = None):
        """Opens the files and truncates them to the position `at`.

        Args:
            folder: Folder to write; created if missing.
            tokenizer: Tokenizer of the tokens.
            shard_tokens: Tokens per shard.
            at: Position returned by `commit`; None starts from nothing.

        Raises:
            OSError: The folder cannot be written to.
        """
        self.folder = folder
        self._tokenizer = tokenizer
        self._dtype = smallest_dtype(tokenizer.vocab_size)
        self._shard_tokens = shard_tokens
        at = at or {"shards": [], "num_tokens": 0, "num_documents": 0, "num_bytes": 0}
        self._shards: list[dict[str, Any]] = list(at["shards"])  # complete ones
        self.num_tokens: int = at["num_tokens"]
        self.num_documents: int = at["num_documents"]
        self.num_bytes: int = at["num_bytes"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)  # the folder becomes incomplete
        for leftover in sorted(folder.glob("*.tokens"))[len(self._shards) + 1 :]:
            leftover.unlink()
        in_shard = self.num_tokens - shard_tokens * len(self._shards)
        self._tokens = _Appended(self._shard_path(), in_shard * DTYPES[self._dtype].itemsize)
        self._ends = _Appended(folder / _ENDS_FILE, self.num_documents * END_DTYPE.itemsize)

    def append(self, tokens: np.ndarray, ends: np.ndarray, num_bytes: int) -> None:
        """Appends tokens.

        Args:
            tokens: (tokens,).
            ends: Position after the last token of each document, relative to `tokens`, (documents,).
            num_bytes: UTF-8 bytes of the text.
        """
        self._ends.write(np.asarray(ends + self.num_tokens, END_DTYPE))
        tokens = np.asarray(tokens, DTYPES[self._dtype])
        self.num_documents += len(ends)
        self.num_bytes += num_bytes
        while len(tokens):
            room = self._shard_tokens * (len(self._shards) + 1) - self.num_tokens
            self._tokens.write(tokens[:room])
            self.num_tokens += min(room, len(tokens))
            if len(tokens) >= room:
                self._end_shard()
            tokens = tokens[room:]

    def commit(self) -> dict[str, Any]:
        """Flushes everything to disk and returns the position, serializable as JSON."""
        self._tokens.flush()
        self._ends.flush()
        return {
            "shards": list(self._shards),
            "num_tokens": self.num_tokens,
            "num_documents": self.num_documents,
            "num_bytes": self.num_bytes,
        }

    def finish(self, text: dict[str, int]) -> dict[str, Any]:
        """Writes the manifest, which completes the folder, and returns it.

        Args:
            text: Statistics of the text, for the manifest.
        """
        self.commit()
        last = [self._shard_entry()] if self.num_tokens > self._shard_tokens * len(self._shards) else []
        manifest = {
            "format": FORMAT,
            "dtype": self._dtype,
            "vocab_size": self._tokenizer.vocab_size,
            "num_tokens": self.num_tokens,
            "num_documents": self.num_documents,
            "num_bytes": self.num_bytes,
            "end_of_document": self._tokenizer.end_of_document,
            "tokenizer": save_tokenizer(self._tokenizer, self.folder / TOKENIZER_FOLDER),
            "tokenizer_identity": self._tokenizer.identity,
            "text": text,
            "shards": [*self._shards, *last],
            "documents": {"file": _ENDS_FILE, "sha256": self._ends.sha256()},
        }
        manifest["sha256"] = data_sha256(manifest)
        if not last:
            self._tokens.path.unlink()  # the last shard is empty
        self.close()
        for file in (self.folder / TOKENIZER_FOLDER).iterdir():
            flush_to_disk(file)
        write_atomically(self.folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        return manifest

    def close(self) -> None:
        """Closes the files without completing the folder."""
        self._tokens.close()
        self._ends.close()

    def _shard_path(self) -> Path:
        return self.folder / f"{len(self._shards):05d}.tokens"

    def _end_shard(self) -> None:
        self._tokens.flush()
        self._shards.append(self._shard_entry())
        self._tokens.close()
        self._tokens = _Appended(self._shard_path(), 0)

    def _shard_entry(self) -> dict[str, Any]:
        num_tokens = self.num_tokens - self._shard_tokens * len(self._shards)
        return {"file": self._tokens.path.name, "num_tokens": num_tokens, "sha256": self._tokens.sha256()}


class _Appended:
    """Growing file and its hash."""

    def __init__(self, path: Path, size: int):
        """Opens a file, hashes its first `size` bytes and truncates the rest.

        Raises:
            OSError: The file cannot be written to, or is shorter than `size`.
        """
        self.path = path
        self._digest = hashlib.sha256()
        self._stream: BinaryIO = path.open("r+b" if size else "wb")
        remaining = size
        while remaining:
            block = self._stream.read(min(remaining, _HASHED_AT_ONCE))
            if not block:
                raise OSError(f"{path} has {size - remaining:,} bytes instead of {size:,}")
            self._digest.update(block)
            remaining -= len(block)
        self._stream.truncate(size)
        self._stream.seek(size)

    def write(self, array: np.ndarray) -> None:
        content = np.ascontiguousarray(array).view(np.uint8).data
        self._stream.write(content)
        self._digest.update(content)

    def flush(self) -> None:
        """Flushes to disk, so that the content survives a power failure."""
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def sha256(self) -> str:
        return self._digest.hexdigest()

    def close(self) -> None:
        self._stream.close()
