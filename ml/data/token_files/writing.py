"""Writes token files: see `ml.data.token_files.reading` for the format."""

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
    """Appends to a stream of tokens in shards of `shard_tokens` each.

    What was written is certain to be there after `commit`, which returns a position: a writer that begins `at` it goes
    on as if nothing had come after.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, shard_tokens: int, at: dict[str, Any] | None = None):
        """Opens the files; what stands behind the position `at` is cut off.

        Raises:
            OSError: The folder cannot be written to.
        """
        self.folder = folder
        self._tokenizer = tokenizer
        self._dtype = smallest_dtype(tokenizer.vocab_size)
        self._shard_tokens = shard_tokens
        at = at or {"shards": [], "num_tokens": 0, "num_documents": 0, "num_bytes": 0}
        self._shards: list[dict[str, Any]] = list(at["shards"])  # those that are full
        self.num_tokens: int = at["num_tokens"]
        self.num_documents: int = at["num_documents"]
        self.num_bytes: int = at["num_bytes"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)  # it is not complete any more
        for leftover in sorted(folder.glob("*.tokens"))[len(self._shards) + 1 :]:
            leftover.unlink()
        in_shard = self.num_tokens - shard_tokens * len(self._shards)
        self._tokens = _Appended(self._shard_path(), in_shard * DTYPES[self._dtype].itemsize)
        self._ends = _Appended(folder / _ENDS_FILE, self.num_documents * END_DTYPE.itemsize)

    def append(self, tokens: np.ndarray, ends: np.ndarray, num_bytes: int) -> None:
        """Appends `tokens` (tokens,), in which documents end behind the positions `ends` (documents,)."""
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
        """Returns the position, as JSON can write it, once all before it would survive a power failure."""
        self._tokens.flush()
        self._ends.flush()
        return {
            "shards": list(self._shards),
            "num_tokens": self.num_tokens,
            "num_documents": self.num_documents,
            "num_bytes": self.num_bytes,
        }

    def finish(self, text: dict[str, int]) -> dict[str, Any]:
        """Writes the manifest, which makes the folder complete, and returns it; `text` is what it says of the text."""
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
            "text": text,
            "shards": [*self._shards, *last],
            "documents": {"file": _ENDS_FILE, "sha256": self._ends.sha256()},
        }
        manifest["sha256"] = data_sha256(manifest)
        if not last:
            self._tokens.path.unlink()  # it was opened for tokens that never came
        self.close()
        for file in (self.folder / TOKENIZER_FOLDER).iterdir():
            flush_to_disk(file)
        write_atomically(self.folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        return manifest

    def close(self) -> None:
        """Closes the files as they are."""
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
    """A file that grows, and its hash so far."""

    def __init__(self, path: Path, size: int):
        """Opens a file at `size` bytes, all of which must be there; cuts off the rest.

        Raises:
            OSError: The file cannot be written to, or is shorter.
        """
        self.path = path
        self._digest = hashlib.sha256()
        self._stream: BinaryIO = path.open("r+b" if size else "wb")
        left = size
        while left:
            block = self._stream.read(min(left, _HASHED_AT_ONCE))
            if not block:
                raise OSError(f"{path} has {size - left:,} bytes instead of {size:,}")
            self._digest.update(block)
            left -= len(block)
        self._stream.truncate(size)
        self._stream.seek(size)

    def write(self, array: np.ndarray) -> None:
        content = memoryview(np.ascontiguousarray(array)).cast("B") if len(array) else b""
        self._stream.write(content)
        self._digest.update(content)

    def flush(self) -> None:
        """Returns when what was written would survive a power failure."""
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def sha256(self) -> str:
        return self._digest.hexdigest()

    def close(self) -> None:
        self._stream.close()
