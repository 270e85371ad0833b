"""Token files: a corpus tokenized once by `python -m ml prepare`, and its reader.

A prepared folder contains

    manifest.json         description of the content, see below; written last, so that a folder without it is incomplete
    00000.tokens, ...     shards: one unsigned little-endian integer per token
    documents.ends        end of each document in the stream of all shards: one little-endian int64 per document, the
                          position after its last token (the end-of-document token, if there is one)
    tokenizer/            copies of the tokenizer's files, so that the folder is self-contained

The concatenated shards are a single stream; a document may begin in one shard and end in the next. The manifest is an
object with

    format                "juniper tokens 1"
    dtype                 "uint8", "uint16" or "uint32": the smallest that holds vocab_size - 1
    vocab_size            exclusive upper bound of the token ids
    num_tokens            tokens in all shards, end-of-document tokens included
    num_documents         documents, none of them empty
    num_bytes             UTF-8 bytes of the documents' text
    end_of_document       token after each document; null if the tokenizer has none
    tokenizer             {"name", "arguments", "files"}, see `ml.data.tokenizers.saved`
    tokenizer_identity    SHA-256 of its vocabulary, merges and special tokens; missing in folders of release 0.1.0
    text                  statistics of the text: {"sources", "source_bytes", "empty_documents", "skipped_rows",
                          "invalid_utf8", "zero_characters", "unknown_characters", "shared_files"}; all but the first
                          two count what was found in the text, older folders lack the last two
    shards                [{"file", "num_tokens", "sha256"}, ...], in the order of the stream
    documents             {"file", "sha256"}
    sha256                hash of everything above that determines the tokens: equal for equal data on every machine

With a held-out split there are two such folders, `train/` and `validation/`, in the output folder of `prepare`;
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

from ml.data.errors import DataError, MissingData
from ml.data.tokenizers import Tokenizer
from ml.data.tokenizers.saved import open_tokenizer, verify_tokenizer

MANIFEST = "manifest.json"
FORMAT = "juniper tokens 1"
TOKENIZER_FOLDER = "tokenizer"
UNFINISHED = "preparation.json"  # kept by `prepare` in the output folder
DTYPES: dict[str, np.dtype[Any]] = {"uint8": np.dtype("u1"), "uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
END_DTYPE: np.dtype[Any] = np.dtype("<i8")

_HASHED_AT_ONCE = 2**22


def smallest_dtype(vocab_size: int) -> str:
    """Returns the name of the smallest type of token files that holds all tokens of a vocabulary.

    Raises:
        DataError: The vocabulary does not fit in 32 bits.
    """
    for name, dtype in DTYPES.items():
        if vocab_size - 1 <= np.iinfo(dtype).max:
            return name
    raise DataError(f"a vocabulary of {vocab_size:,} does not fit in 32 bits")


def find_token_folders(path: str | Path) -> tuple[Path, Path | None]:
    """Returns the prepared training folder and the held-out folder, which may be None.

    Args:
        path: Folder with a manifest, which has no held-out split, or folder with such folders `train` and `validation`.

    Raises:
        DataError: The path is not a prepared folder.
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
        return MissingData(
            f"no such folder of token files: {path} (from {Path.cwd()}); "
            f"make it with `python -m ml prepare TEXTS --output={path}`"
        )
    if (path / UNFINISHED).exists():
        return DataError(f"{path} is not complete: `python -m ml prepare` was stopped; run it again to resume")
    return DataError(f"{path} has no token files ({MANIFEST}); make them with `python -m ml prepare`")


class TokenFolder:
    """Reader of a prepared folder: its tokens as one stream, by position.

    Shards are read with `pread` on descriptors that stay open, and are not mapped into memory: if a file is truncated
    while in use, reading raises an error with its name, where a memory map would kill the process with SIGBUS. Reading
    allocates only its result, and is thread-safe.

    Attributes:
        path: The folder.
        manifest: Content of manifest.json.
        vocab_size: Exclusive upper bound of the token ids.
        num_tokens: Number of tokens, end-of-document tokens included.
        num_documents: Number of documents.
        num_bytes: UTF-8 bytes of the documents' text.
        dtype: Type of the tokens, little-endian.
        end_of_document: Token after each document; None if there is none.
        sha256: Hash of everything that determines the tokens.
    """

    def __init__(self, path: str | Path):
        """Reads the manifest, and compares the sizes of all files with it.

        Args:
            path: The folder.

        Raises:
            DataError: The folder is missing, incomplete or of another format, or one of its files is truncated or
                missing.
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
        self._starts = np.cumsum([0, *lengths])  # position of each shard in the stream, and the end of the last
        self._ends_file = self.path / self.manifest["documents"]["file"]
        for file, length in zip(self._shards, lengths, strict=True):
            _check_size(file, length * self.dtype.itemsize)
        _check_size(self._ends_file, self.num_documents * END_DTYPE.itemsize)
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer that made the tokens; its files in the folder are read on first use."""
        return open_tokenizer(
            self.manifest["tokenizer"], self.path / TOKENIZER_FOLDER, self.manifest.get("tokenizer_identity")
        )

    @functools.cached_property
    def document_ends(self) -> np.ndarray:
        """Position after the last token of each document, (num_documents,) int64.

        Read into memory on first use: 8 bytes per document.

        Raises:
            DataError: The file cannot be read, or is damaged.
        """
        return self._read_ends()

    def _read_ends(self) -> np.ndarray:
        try:
            ends = np.fromfile(self._ends_file, END_DTYPE)
        except OSError as error:
            raise DataError(f"cannot read {self._ends_file}: {error.strerror}") from error
        in_order = len(ends) == self.num_documents and (np.diff(ends, prepend=0) > 0).all()
        if not in_order or (len(ends) and ends[-1] != self.num_tokens):
            raise DataError(f"{self._ends_file} is damaged: it must hold {self.num_documents:,} ascending positions")
        return ends

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns the tokens at positions `start` to `stop - 1`, (stop - start,), in the type of the files.

        Raises:
            IndexError: The range exceeds the stream.
            DataError: A file has been truncated or lost, or has a token that is not below `vocab_size`.
        """
        return self.gather(np.array([start]), stop - start)[0]

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Reads windows.

        Args:
            starts: Position of the first token of each window, (B,).
            length: Tokens per window.

        Returns:
            (B, length), in the type of the files.

        Raises:
            IndexError: A window exceeds the stream.
            DataError: A file has been truncated or lost, or has a token that is not below `vocab_size`.
        """
        if length < 0 or (len(starts) and not 0 <= min(starts) <= max(starts) <= self.num_tokens - length):
            raise IndexError(f"windows of {length} tokens at {starts} exceed a stream of {self.num_tokens}")
        tokens = np.empty((len(starts), length), self.dtype)
        for row, start in zip(tokens, starts, strict=True):
            self._fill(row, int(start))
        all_valid = self.vocab_size > np.iinfo(self.dtype).max
        if not all_valid and tokens.size and tokens.max() >= self.vocab_size:
            self._refuse(tokens, starts)
        return tokens

    def _fill(self, row: np.ndarray, start: int) -> None:
        """Reads the tokens from `start` on into `row`, from as many shards as it spans."""
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        filled = 0
        while filled < len(row):
            first = start + filled - int(self._starts[shard])
            part = row[filled : filled + int(self._starts[shard + 1] - self._starts[shard]) - first]
            self._read_shard(shard, first * self.dtype.itemsize, part.view(np.uint8).data)
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
                    raise DataError(f"{self._shards[shard]} was truncated while it was read")
                done += count
        except OSError as error:
            raise DataError(f"cannot read {self._shards[shard]}: {error.strerror}") from error

    def _open(self, shard: int) -> int:
        with self._lock:
            if shard not in self._descriptors:
                self._descriptors[shard] = os.open(self._shards[shard], os.O_RDONLY | os.O_CLOEXEC)
            return self._descriptors[shard]

    def _refuse(self, tokens: np.ndarray, starts: np.ndarray) -> None:
        row, column = (int(index) for index in np.argwhere(tokens >= self.vocab_size)[0])
        position = int(starts[row]) + column
        shard = int(np.searchsorted(self._starts, position, side="right")) - 1
        raise DataError(
            f"{self._shards[shard]}: token {position - int(self._starts[shard]):,} is {tokens[row, column]}, but the "
            f"vocabulary of {self.path / MANIFEST} has {self.vocab_size}: the file is damaged or was replaced"
        )

    def verify(self) -> None:
        """Reads all files, and checks hashes, document boundaries and token ids.

        Raises:
            DataError: There are problems; all are listed.
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
        """Returns the problems of a file: a changed hash, and token ids out of range if it holds tokens of `dtype`."""
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
            problems.append(f"{file} has changed: its SHA-256 is {digest.hexdigest()}, expected {sha256}")
        if largest >= self.vocab_size:
            problems.append(f"{file} has token {largest}, but the vocabulary has {self.vocab_size}")
        return problems

    def close(self) -> None:
        """Closes the files; reading reopens them."""
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()

    def __enter__(self) -> "TokenFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_descriptors"):  # not set if the constructor failed
            self.close()


def data_sha256(manifest: dict[str, Any]) -> str:
    """Hashes everything that determines the tokens; paths and statistics of the text are excluded."""
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
            raise DataError(f"{path} has the format {manifest['format']!r}, expected {FORMAT!r}")
        intact = manifest["sha256"] == data_sha256(manifest) and _adds_up(manifest)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    if not intact:
        raise DataError(f"{path} is damaged or was edited: its hash does not match")
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
        raise DataError(f"{file} has {size:,} bytes, expected {expected:,}: it was truncated or replaced")
