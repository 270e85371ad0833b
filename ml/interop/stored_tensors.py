"""Safetensors files, read without mapping them into memory; a header that does not fit its file is refused."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ml.interop.errors import InteropError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MAX_HEADER = 100_000_000  # bytes, the limit of the safetensors library
_CHUNK = 1 << 24  # bytes read at once
_HASHED = 1 << 20  # bytes hashed at once, which stay in the cache of a core


class StoredTensor(NamedTuple):
    """A tensor in a safetensors file.

    Attributes:
        file: The file.
        dtype: The dtype in the spelling of the file, "BF16".
        shape: The shape.
        offset: Position of its first byte in the file.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry of the first dimension."""
        return math.prod(self.shape[1:]) * torch.empty((), dtype=DTYPES[self.dtype]).element_size()

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor."""
        return self.row_bytes * (self.shape[0] if self.shape else 1)

    def sha256(self) -> str:
        """Returns the hash of the bytes of the tensor."""
        hashed, buffer = hashlib.sha256(), memoryview(bytearray(min(_HASHED, self.num_bytes)))
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.offset)
            left = self.num_bytes
            while left:
                count = file.readinto(buffer[:left])
                if not count:
                    raise InteropError(f"{self.file} is shorter than it was when it was opened")
                hashed.update(buffer[:count])
                left -= count
        return hashed.hexdigest()

    def read(self) -> Tensor:
        """Reads the whole tensor."""
        tensor = torch.empty(self.shape, dtype=DTYPES[self.dtype], device="cpu")
        self.read_rows(tensor, 0)
        return tensor

    def read_rows(self, into: Tensor, first: int) -> None:
        """Reads consecutive entries of the first dimension straight into memory.

        Args:
            into: A contiguous CPU tensor of the dtype of the file.
            first: Index of the first entry.
        """
        buffer = _bytes_of(into)
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.offset + first * self.row_bytes)
            done = 0
            while done < len(buffer):
                count = file.readinto(buffer[done : done + _CHUNK])
                if not count:
                    raise InteropError(f"{self.file} is shorter than it was when it was opened")
                done += count


def read_header(path: Path, file: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of a safetensors file by name.

    Args:
        path: The file.
        file: The same file with its links resolved.

    Raises:
        InteropError: The file is not whole, or its header contradicts itself.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise InteropError(f"{path} is not a whole safetensors file: it has {size} bytes, and its header {length}")
        text = opened.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        begin = 8 + length
        found = {name: _tensor(path, file, name, entry, begin) for name, entry in header.items()}
        ends = {name: int(entry["data_offsets"][1]) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, InteropError):
            raise
        raise InteropError(f"{path} is not a safetensors file: its header cannot be read") from None
    end = 0
    for name, tensor in sorted(found.items(), key=lambda item: (item[1].offset, ends[item[0]])):
        if tensor.offset != begin + end or ends[name] != end + tensor.num_bytes:
            raise InteropError(f"the header of {path} contradicts itself: {name} has not the bytes of its shape")
        end = ends[name]
    if begin + end != size:
        what = "truncated" if begin + end > size else "too long"
        raise InteropError(f"{path} is {what}: it has {size} bytes, and its header describes {begin + end}")
    return found


def _tensor(path: Path, file: Path, name: str, entry: dict[str, Any], begin: int) -> StoredTensor:
    shape = tuple(entry["shape"])
    if any(type(size) is not int or size < 0 for size in shape):
        raise ValueError("a size is not a count")
    if entry["dtype"] not in DTYPES:
        known = ", ".join(sorted(DTYPES))
        raise InteropError(
            f"{name} in {path} has the dtype {entry['dtype']}: only {known} are imported, no quantized weights"
        )
    return StoredTensor(file, entry["dtype"], shape, begin + int(entry["data_offsets"][0]))


def _bytes_of(tensor: Tensor) -> memoryview:
    """Returns the memory of a contiguous CPU tensor."""
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
