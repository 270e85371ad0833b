"""Token files: a corpus that `python -m ml prepare` has turned into numbers once, and how it is read.

A prepared folder holds

    manifest.json         what is in it, see below; written last, so that a folder without one is not complete
    00000.tokens, ...     the shards: one unsigned little-endian integer a token and nothing else
    documents.ends        where each document ends in the stream of all shards: one little-endian int64 a document,
                          the number of tokens up to and with its last one (which is the end-of-document token, if any)
    tokenizer/            the files of the tokenizer, copied, so that the folder needs nothing outside it

The shards one after another are a single stream; a document may begin in one and end in the next. The manifest is an
object with

    format                "juniper tokens 1"
    dtype                 "uint8", "uint16" or "uint32": the smallest that holds vocab_size - 1
    vocab_size            all tokens are below it
    num_tokens            in all shards together, end-of-document tokens included
    num_documents         none of them empty
    num_bytes             of UTF-8, of the text of the documents
    end_of_document       the token behind each document; null where the tokenizer has none
    tokenizer             {"name", "arguments", "files"}, see `ml.data.tokenizers.saved`
    text                  what became of the text on the way: {"sources", "source_bytes", "empty_documents",
                          "skipped_rows", "invalid_utf8", "zero_characters"}: each a number, all but the first two
                          counting what was left out or replaced
    shards                [{"file", "num_tokens", "sha256"}, ...], in the order of the stream
    documents             {"file", "sha256"}
    sha256                of all of the above that decides which tokens are read: equal for equal data, anywhere

With a held-out part there are two such folders, `train/` and `validation/`, in the folder that `prepare` was given:
`find_token_folders` finds both.
"""

import functools
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from ml.data.errors import DataError
from ml.data.tokenizers import Tokenizer
from ml.data.tokenizers.saved import open_tokenizer, verify_tokenizer

MANIFEST = "manifest.json"
FORMAT = "juniper tokens 1"
TOKENIZER_FOLDER = "tokenizer"
UNFINISHED = "preparation.json"  # what `prepare` keeps beside, or above, a folder that it is still writing
DTYPES = {"uint8": np.dtype("u1"), "uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
END_DTYPE = np.dtype("<i8")

_HASHED_AT_ONCE = 2**22


def smallest_dtype(vocab_size: int) -> str:
    """The name of the smallest type of token files that holds all tokens of a vocabulary.

    Raises:
        DataError: There is none.
    """
    for name, dtype in DTYPES.items():
        if vocab_size - 1 <= np.iinfo(dtype).max:
            return name
    raise DataError(f"a vocabulary of {vocab_size:,} does not fit in 32 bits")


def find_token_folders(path: str | Path) -> tuple[Path, Path | None]:
    """The prepared folder to train on and the held-out one, if there is one.

    `path` is a folder with a manifest, which is then all there is, or one with such folders `train` and `validation`.

    Raises:
        DataError: There is no prepared folder.
    """
    path = Path(path)
    if (path / MANIFEST).is_file():
        return path, None
    if not (path / "train" / MANIFEST).is_file():
        raise _no_folder(path)
    held_out = path / "validation"
    return path / "train", held_out if (held_out / MANIFEST).is_file() else None


def _no_folder(path: Path) -> DataError:
    if not path.is_dir():
        return DataError(f"no such folder of token files: {path} (from {Path.cwd()})")
    if (path / UNFINISHED).exists():
        return DataError(f"{path} is not complete: `python -m ml prepare` was stopped. Run it again and it goes on")
    return DataError(f"{path} holds no token files ({MANIFEST}): make them with `python -m ml prepare`")


class TokenFolder:
    """A prepared folder, open for reading: its tokens as one stream, by position.

    Shards are read with `pread` on descriptors that stay open, never mapped: a file that is cut while it is in use is
    an error with its name, where a mapping would end the process with SIGBUS; and reading needs no more memory than
    what it returns. Several threads may read at once.

    Attributes:
        path: the folder.
        manifest: what manifest.json holds.
        vocab_size, num_tokens, num_documents, num_bytes: as in the manifest.
        dtype: of the tokens, little-endian.
        end_of_document: the token behind each document, None where there is none.
        sha256: of all that decides which tokens are read.
    """

    def __init__(self, path: str | Path):
        """Reads the manifest, and compares the sizes of all files with it.

        Raises:
            DataError: The folder is missing, incomplete, of another format, or one of its files is cut or missing.
        """
        self.path = Path(path)
        self.manifest = _read_manifest(self.path)
        self.vocab_size: int = self.manifest["vocab_size"]
        self.num_tokens: int = self.manifest["num_tokens"]
        self.num_documents: int = self.manifest["num_documents"]
        self.num_bytes: int = self.manifest["num_bytes"]
        self.end_of_document: int | None = self.manifest["end_of_document"]
        self.dtype = DTYPES[self.manifest["dtype"]]
        self.sha256: str = self.manifest["sha256"]
        self._shards = [self.path / shard["file"] for shard in self.manifest["shards"]]
        lengths = [shard["num_tokens"] for shard in self.manifest["shards"]]
        self._starts = np.cumsum([0, *lengths])  # of each shard in the stream, and the end of the last
        self._ends_file = self.path / self.manifest["documents"]["file"]
        for file, length in zip(self._shards, lengths, strict=True):
            _check_size(file, length * self.dtype.itemsize)
        _check_size(self._ends_file, self.num_documents * END_DTYPE.itemsize)
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the tokens, from the files in the folder; they are read when it is first used."""
        return open_tokenizer(self.manifest["tokenizer"], self.path / TOKENIZER_FOLDER)

    @functools.cached_property
    def document_ends(self) -> np.ndarray:
        """Where each document ends in the stream, int64 (num_documents,): the position behind its last token.

        Read into memory when it is first asked for: 8 bytes a document.

        Raises:
            DataError: The file cannot be read, or is not what it should be.
        """
        return self._read_ends()

    def _read_ends(self) -> np.ndarray:
        try:
            ends = np.fromfile(self._ends_file, END_DTYPE)
        except OSError as error:
            raise DataError(f"cannot read {self._ends_file}: {error.strerror}") from error
        in_order = len(ends) == self.num_documents and (np.diff(ends, prepend=0) > 0).all()
        if not in_order or (len(ends) and ends[-1] != self.num_tokens):
            raise DataError(f"{self._ends_file} is damaged: it does not end {self.num_documents:,} documents in order")
        return ends

    def read(self, start: int, stop: int) -> np.ndarray:
        """The tokens at positions `start` to `stop - 1`, (stop - start,), in the type of the files.

        Raises:
            IndexError: The stream does not reach so far.
            DataError: A file has been cut or lost since, or holds a token that is not below `vocab_size`.
        """
        return self.gather(np.array([start]), stop - start)[0]

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The `length` tokens from each of `starts` (B,) on: (B, length), in the type of the files.

        Raises:
            IndexError: The stream does not reach so far.
            DataError: A file has been cut or lost since, or holds a token that is not below `vocab_size`.
        """
        if length < 0 or (len(starts) and not 0 <= min(starts) <= max(starts) <= self.num_tokens - length):
            raise IndexError(f"{length} tokens from {starts} on are not all in a stream of {self.num_tokens}")
        tokens = np.empty((len(starts), length), self.dtype)
        for row, start in zip(tokens, starts, strict=True):
            self._fill(row, int(start))
        fills_type = self.vocab_size > np.iinfo(self.dtype).max
        if not fills_type and tokens.size and tokens.max() >= self.vocab_size:
            self._refuse(tokens, starts)
        return tokens

    def _fill(self, row: np.ndarray, start: int) -> None:
        """Reads what begins at `start` into `row`, from as many shards as it spans."""
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        filled = 0
        while filled < len(row):
            first = start + filled - int(self._starts[shard])
            part = row[filled : filled + int(self._starts[shard + 1] - self._starts[shard]) - first]
            self._read_shard(shard, first * self.dtype.itemsize, memoryview(part).cast("B") if len(part) else b"")
            filled += len(part)
            shard += 1

    def _read_shard(self, shard: int, offset: int, into: memoryview) -> None:
        descriptor = self._descriptors.get(shard)
        try:
            if descriptor is None:
                descriptor = self._open(shard)
            done = 0
            while done < len(into):  # one call reads at most 2 GiB
                count = os.preadv(descriptor, [into[done:]], offset + done)
                if count == 0:
                    _check_size(self._shards[shard], self.manifest["shards"][shard]["num_tokens"] * self.dtype.itemsize)
                    raise DataError(f"{self._shards[shard]} was cut while it was read")
                done += count
        except OSError as error:
            raise DataError(f"cannot read {self._shards[shard]}: {error.strerror}") from error

    def _open(self, shard: int) -> int:
        with self._lock:
            if shard not in self._descriptors:
                self._descriptors[shard] = os.open(self._shards[shard], os.O_RDONLY | os.O_CLOEXEC)
            return self._descriptors[shard]

    def _refuse(self, tokens: np.ndarray, starts: np.ndarray) -> None:
        row, column = (int(place) for place in np.argwhere(tokens >= self.vocab_size)[0])
        position = int(starts[row]) + column
        shard = int(np.searchsorted(self._starts, position, side="right")) - 1
        raise DataError(
            f"{self._shards[shard]}: token {position - int(self._starts[shard]):,} is {tokens[row, column]}, but the "
            f"vocabulary of {self.path / MANIFEST} has {self.vocab_size}: the file is damaged or not the one it was"
        )

    def verify(self) -> None:
        """Reads everything again, and compares hashes, the order of documents, and tokens with the vocabulary.

        Raises:
            DataError: Something differs; all that does is listed.
        """
        problems = []
        for file, shard in zip(self._shards, self.manifest["shards"], strict=True):
            problems += self._problems_of(file, shard["sha256"], self.dtype)
        problems += self._problems_of(self._ends_file, self.manifest["documents"]["sha256"], None)
        problems += verify_tokenizer(self.manifest["tokenizer"], self.path / TOKENIZER_FOLDER)
        if problems:
            raise DataError("\n".join(problems))
        self._read_ends()

    def _problems_of(self, file: Path, sha256: str, dtype: np.dtype | None) -> list[str]:
        """What is wrong with a file: its hash, and tokens out of range where it holds tokens of `dtype`."""
        digest, largest = hashlib.sha256(), 0
        try:
            with file.open("rb") as stream:
                while block := stream.read(_HASHED_AT_ONCE):
                    digest.update(block)
                    if dtype is not None and len(block) % dtype.itemsize == 0:
                        largest = max(largest, int(np.frombuffer(block, dtype).max()))
        except OSError as error:
            return [f"cannot read {file}: {error.strerror}"]
        problems = []
        if digest.hexdigest() != sha256:
            problems.append(f"{file} has changed: its SHA-256 is {digest.hexdigest()}, the manifest says {sha256}")
        if largest >= self.vocab_size:
            problems.append(f"{file} holds token {largest}, but the vocabulary has {self.vocab_size}")
        return problems

    def close(self) -> None:
        """Closes the files; reading opens them again."""
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()

    def __enter__(self) -> "TokenFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_descriptors"):  # a folder that could not be opened has none
            self.close()


def data_sha256(manifest: dict[str, Any]) -> str:
    """The hash of all that decides which tokens are read: no paths, no counts of what was skipped on the way."""
    deciding = {
        "format": manifest["format"],
        "dtype": manifest["dtype"],
        "vocab_size": manifest["vocab_size"],
        "num_documents": manifest["num_documents"],
        "num_bytes": manifest["num_bytes"],
        "end_of_document": manifest["end_of_document"],
        "tokenizer": manifest["tokenizer"],
        "shards": [[shard["num_tokens"], shard["sha256"]] for shard in manifest["shards"]],
        "documents": manifest["documents"]["sha256"],
    }
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise _no_folder(folder)
    try:
        manifest = json.loads(path.read_text("utf-8"))
        if manifest["format"] != FORMAT:
            raise DataError(f"{path} is of the format {manifest['format']!r}, and this reads {FORMAT!r}")
        intact = manifest["sha256"] == data_sha256(manifest) and _adds_up(manifest)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    if not intact:
        raise DataError(f"{path} is damaged or was edited: its own hash does not fit it")
    return manifest


def _adds_up(manifest: dict[str, Any]) -> bool:
    counts = [manifest[name] for name in ("num_tokens", "num_documents", "num_bytes")]
    return counts[0] == sum(shard["num_tokens"] for shard in manifest["shards"]) and min(counts) >= 0


def _check_size(file: Path, expected: int) -> None:
    try:
        size = file.stat().st_size
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error
    if size != expected:
        raise DataError(f"{file} has {size:,} bytes, and the manifest says {expected:,}: it was cut or replaced")
