"""Folders in the format of Hugging Face: read safely, with no code run and no path that leaves the folder."""

import functools
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from ml.data.tokenizers import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer
from ml.interop.errors import InteropError
from ml.interop.stored_tensors import StoredTensor, read_header

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Carried from an imported folder to an exported one, besides config.json and generation_config.json.
TOKENIZER_FILES = (
    TOKENIZER,
    TOKENIZER_CONFIG,
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    CHAT_TEMPLATE,
    "chat_template.json",
)
_MAX_JSON = 200_000_000  # bytes
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_THREADS = 8


class Folder:
    """A folder with config.json, safetensors files and a tokenizer.

    Links are followed where they stay in the folder, or in the cache of the hub that the folder belongs to, which links
    `snapshots/REVISION` to `blobs`.

    Args:
        path: The folder.

    Raises:
        InteropError: There is no such folder.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.is_dir():
            raise InteropError(f"there is no folder {path}")
        if not (path / CONFIG).is_file():
            adapter = "; it holds an adapter" if (path / "adapter_config.json").is_file() else ""
            raise InteropError(f"{path} is neither a run nor a Hugging Face folder: it has no {CONFIG}{adapter}")
        self._root = _root_of(path.resolve())

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        return self.json(CONFIG)

    def file(self, name: str) -> Path:
        """Returns a file with its links resolved.

        Args:
            name: The name of the file in the folder.

        Raises:
            InteropError: The name or a link leaves the folder, or there is no such file.
        """
        if name in ("", ".", "..") or name != PurePosixPath(name).name or "\\" in name:
            raise InteropError(f"{name!r} is not the name of a file in {self.path}")
        resolved = (self.path / name).resolve()
        if not resolved.is_relative_to(self._root):
            raise InteropError(f"{self.path / name} is a link that leaves the folder, to {resolved}")
        if not resolved.is_file():
            raise InteropError(f"{self.path / name} is missing")
        return resolved

    def has(self, name: str) -> bool:
        """Returns True if there is a file of this name."""
        return (self.path / name).is_file()

    def read(self, name: str) -> bytes:
        """Reads a small file.

        Raises:
            InteropError: It cannot be read.
        """
        file = self.file(name)
        try:
            if file.stat().st_size > _MAX_JSON:
                raise InteropError(f"{self.path / name} is too large to be what its name says")
            return file.read_bytes()
        except OSError as error:
            raise InteropError(f"cannot read {self.path / name}: {error.strerror}") from None

    def json(self, name: str) -> dict[str, Any]:
        """Reads a file with a JSON object.

        Raises:
            InteropError: It cannot be read, or is none.
        """
        try:
            content = json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            if isinstance(error, InteropError):
                raise
            raise InteropError(f"{self.path / name} is not JSON: {error}") from None
        if not isinstance(content, dict):
            raise InteropError(f"{self.path / name} is not a JSON object")
        return content

    def kept_files(self) -> dict[str, bytes]:
        """Returns the content of the files that a run keeps for its export, by name."""
        names = [CONFIG, GENERATION_CONFIG, *TOKENIZER_FILES]
        return {name: self.read(name) for name in names if self.has(name)}

    def tokenizer(self) -> Tokenizer | None:
        """Returns the tokenizer, which is read on first use; None if there is none that can be read."""
        if self.has(TOKENIZER):
            self.file(TOKENIZER)
            return HuggingFaceTokenizer(str(self.path))
        if self.has("tokenizer.model"):
            return SentencePieceTokenizer(str(self.file("tokenizer.model")))
        return None

    @property
    def has_chat_template(self) -> bool:
        """True if there is a chat template, in a file or in the configuration of the tokenizer."""
        if self.has(CHAT_TEMPLATE):
            return True
        return self.has(TOKENIZER_CONFIG) and bool(self.json(TOKENIZER_CONFIG).get("chat_template"))

    @functools.cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """The tensors of all files, by name.

        Raises:
            InteropError: A file is missing or damaged, the index does not fit the files, or the weights are no
                safetensors.
        """
        if self.has(SINGLE):
            return read_header(self.path / SINGLE, self.file(SINGLE))
        if self.has(INDEX):
            return self._sharded()
        pickles = sorted(file.name for pattern in _PICKLES for file in self.path.glob(pattern))
        if pickles:
            raise InteropError(
                f"{self.path} has its weights in {pickles[0]}, a pickle, which can execute code and is never loaded: "
                "convert it to safetensors"
            )
        raise InteropError(f"{self.path} has no weights: neither {SINGLE} nor {INDEX}")

    def _sharded(self) -> dict[str, StoredTensor]:
        places = self.json(INDEX).get("weight_map")
        if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
            raise InteropError(f"{self.path / INDEX} has no weight_map")
        found: dict[str, StoredTensor] = {}
        for shard in sorted(set(places.values())):
            header = read_header(self.path / shard, self.file(shard))
            expected = {name for name, file in places.items() if file == shard}
            if wrong := sorted(header.keys() ^ expected):
                which = "has" if wrong[0] in header else "has no"
                raise InteropError(f"{INDEX} does not fit the files: {self.path / shard} {which} {wrong[0]}")
            found |= header
        return found

    def sha256(self) -> str:
        """Returns a hash of all tensors: name, dtype, shape and bytes of each, however the files divide them."""

        def digest(item: tuple[str, StoredTensor]) -> tuple[str, str, list[int], str]:
            name, tensor = item
            return name, tensor.dtype, list(tensor.shape), tensor.sha256()

        with ThreadPoolExecutor(_THREADS) as pool:
            digests = sorted(pool.map(digest, self.tensors.items()))
        return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def _root_of(folder: Path) -> Path:
    """Returns the folder that links may point into: the cache of a repository for one of its snapshots."""
    repository = folder.parent.parent
    is_snapshot = folder.parent.name == "snapshots" and (repository / "blobs").is_dir()
    return repository if is_snapshot else folder
