"""The index of a checkpoint, `.metadata` of `torch.distributed.checkpoint`, read without executing anything.

torch pickles its index, and unpickling calls whatever a file names. Here the names of torch's classes give records
without behavior, every other name is refused, and the index is built from the records that pass all checks.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ml.training.errors import RunError

if TYPE_CHECKING:
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

INDEX = ".metadata"

_METADATA = "torch.distributed.checkpoint.metadata"
_RECORDS = {
    (_METADATA, "Metadata"),
    (_METADATA, "TensorStorageMetadata"),
    (_METADATA, "TensorProperties"),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
    (_METADATA, "ChunkStorageMetadata"),
    (_METADATA, "MetadataIndex"),
    (_METADATA, "StorageMeta"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib._local", "PosixPath"),  # Python 3.13
    ("pathlib._local", "WindowsPath"),
}
_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_FILE_NAME = re.compile(r"\w+\.distcp", re.ASCII)


class Index(NamedTuple):
    """The tensors of a checkpoint.

    Attributes:
        tensors: Dtype, shape and parts of each tensor, by name.
        places: The place of each part: a file, an offset and a length in bytes.
    """

    tensors: dict[str, TensorStorageMetadata]
    places: dict[MetadataIndex, _StorageInfo]


def read_index(folder: Path) -> Index:
    """Reads the index of a checkpoint.

    Every tensor in it has a plausible size: its parts make up its shape, and the files hold that many bytes.

    Args:
        folder: The checkpoint.

    Raises:
        RunError: The index is not one that torch wrote for tensors alone, or does not fit the files of the folder.
    """
    path = folder / INDEX
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ValueError("it is not a regular file")
        return _index(_unpickled(path.read_bytes()), folder)
    except RunError:
        raise
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # an unpickler of hostile bytes can raise anything
        raise RunError(f"{path} is not an index of tensors: {error or type(error).__name__}") from error


class _Record:
    """An object of the pickle: the arguments that it was called with, and its state."""

    def __init__(self, *arguments: Any):
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def field(self, name: str) -> Any:
        """Returns an attribute of the object that was pickled."""
        if not isinstance(self.state, dict) or name not in self.state:
            raise ValueError(f"{type(self).__name__} has no {name}")
        return self.state[name]


class _Unpickler(pickle._Unpickler):
    """Makes records; the one in Python, because the memory that the one in C takes depends on numbers in the file."""

    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content))
        self._types: dict[tuple[str, str], type] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Returns the class for a name, of this unpickler alone, so that a file can change no other."""
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch", "Size"):
            return tuple
        if (module, name) not in _RECORDS:
            raise ValueError(f"it names {module}.{name}, which is no part of an index")
        if (module, name) not in self._types:
            self._types[module, name] = type(name, (_Record,), {})
        return self._types[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise ValueError("it refers to an object outside")

    def get_extension(self, code: int) -> Any:
        raise ValueError("it uses the extension registry")


def _unpickled(content: bytes) -> Any:
    return _Unpickler(content).load()


def _index(root: Any, folder: Path) -> Index:
    """Builds the index from the records."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import MetadataIndex

    _require(root, "Metadata")
    entries = {
        _name(name): _tensor(_name(name), entry) for name, entry in _dict(root.field("state_dict_metadata")).items()
    }
    places: dict[MetadataIndex, _StorageInfo] = {}
    for index, info in _dict(root.field("storage_data")).items():
        _require(index, "MetadataIndex")
        key = MetadataIndex(_name(index.field("fqn")), _numbers(index.field("offset")))
        places[key] = _StorageInfo(*_place(info))
    _require_whole(entries, places)
    _require_in_files(places, folder)
    return Index(entries, places)


def _tensor(name: str, entry: Any) -> TensorStorageMetadata:
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorProperties, TensorStorageMetadata

    _require(entry, "TensorStorageMetadata")
    properties = entry.field("properties")
    _require(properties, "TensorProperties")
    dtype = properties.state[0] if isinstance(properties.state, tuple) and properties.state else None
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name} has no dtype")
    size, chunks = _numbers(entry.field("size")), []
    for chunk in _list(entry.field("chunks")):
        _require(chunk, "ChunkStorageMetadata")
        offsets, sizes = _numbers(chunk.field("offsets")), _numbers(chunk.field("sizes"))
        if not len(offsets) == len(sizes) == len(size):
            raise ValueError(f"{name} has a part with another number of dimensions")
        if any(begin + length > whole for begin, length, whole in zip(offsets, sizes, size, strict=True)):
            raise ValueError(f"{name} has a part outside its shape")
        chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
    if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(size):
        raise ValueError(f"the parts of {name} do not make up its shape {size}")
    return TensorStorageMetadata(TensorProperties(dtype), torch.Size(size), chunks)


def _place(info: Any) -> tuple[str, int, int]:
    """Returns the file, the offset and the length of a part."""
    _require(info, "_StorageInfo")
    file = info.field("relative_path")
    if not isinstance(file, str) or not _FILE_NAME.fullmatch(file):
        raise ValueError(f"it names the file {file!r}")
    if info.state.get("transform_descriptors"):
        raise ValueError(f"{file} is compressed or encrypted")
    offset, length = _numbers((info.field("offset"), info.field("length")))
    return file, offset, length


def _require_whole(entries: Mapping[str, TensorStorageMetadata], places: Mapping[Any, Any]) -> None:
    """Requires a place for each part, of at least the bytes of its values."""
    from torch.distributed.checkpoint.metadata import MetadataIndex

    for name, entry in entries.items():
        for chunk in entry.chunks:
            place = places.get(MetadataIndex(name, chunk.offsets))
            num_bytes = math.prod(chunk.sizes) * entry.properties.dtype.itemsize
            there = 0 if place is None else place.length
            if there < num_bytes:
                raise ValueError(f"{name} needs {num_bytes:,} bytes, and has {there:,}")


def _require_in_files(places: Mapping[Any, Any], folder: Path) -> None:
    """Requires that the parts are disjoint and inside the files."""
    ends: dict[str, int] = {}
    for place in sorted(places.values(), key=lambda place: (place.relative_path, place.offset)):
        if place.offset < ends.get(place.relative_path, 0):
            raise ValueError(f"two parts overlap in {place.relative_path}")
        ends[place.relative_path] = place.offset + place.length
    for name, end in ends.items():
        found = (folder / name).lstat()
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{name} is not a regular file")
        if end > found.st_size:
            raise ValueError(f"it names {end:,} bytes of {name}, which has {found.st_size:,}")


def _require(record: Any, kind: str) -> None:
    if not isinstance(record, _Record) or type(record).__name__ != kind:
        raise ValueError(f"a {kind} is missing")


def _dict(value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, dict):
        raise ValueError("a dict is missing")
    return value


def _list(value: Any) -> Iterator[Any]:
    if not isinstance(value, list):
        raise ValueError("a list is missing")
    return iter(value)


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a name is missing")
    return value


def _numbers(value: Any) -> tuple[int, ...]:
    """Requires a tuple of sizes or offsets."""
    if not isinstance(value, tuple) or not all(type(number) is int and 0 <= number < 2**63 for number in value):
        raise ValueError("a size is missing")
    return value
