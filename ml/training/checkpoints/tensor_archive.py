"""One tensor of a file of `torch.distributed.checkpoint`, which holds an archive of `torch.save` for each."""

import io
import os
import zipfile
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ml.training.errors import RunError


def read_tensor(file: Path, offset: int, length: int) -> Tensor:
    """Reads the tensor in a part of a file, on the host, and executes nothing.

    It takes memory for at most `length` bytes: the sizes in the archive are compared with its own.

    Args:
        file: The file.
        offset: First byte of the part.
        length: Number of bytes of the part.

    Raises:
        RunError: The part is not an archive of one tensor, or cannot be read.
    """
    try:
        with file.open("rb") as whole:
            part = _Part(whole, offset, length)
            _require_plain(part)
            part.seek(0)
            tensor = torch.load(io.BufferedReader(part), map_location="cpu", weights_only=True)
    except OSError as error:
        raise RunError(f"{file} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch raises many types
        reason = str(error).partition("\n")[0]
        raise RunError(f"{file} has no tensor at byte {offset:,}: {reason or type(error).__name__}") from error
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise RunError(f"{file} has no tensor at byte {offset:,}")
    return tensor


class _Part(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, whole: BinaryIO, offset: int, length: int):
        super().__init__()
        self._whole = whole
        self._offset = offset
        self._length = length
        self.seek(0)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        begins = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self._length}
        return self._whole.seek(self._offset + max(0, begins[whence] + offset)) - self._offset

    def tell(self) -> int:
        return self._whole.tell() - self._offset

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        left = max(0, self._length - self.tell())
        return self._whole.readinto(memoryview(buffer)[:left])  # type: ignore[attr-defined]


def _require_plain(part: _Part) -> None:
    """Requires records that are stored as they are, so that none is larger than the archive."""
    with zipfile.ZipFile(part) as archive:
        records = archive.infolist()
    is_plain = all(record.compress_type == zipfile.ZIP_STORED for record in records)
    if not is_plain or sum(record.file_size for record in records) > part.seek(0, os.SEEK_END):
        raise ValueError("its records are compressed")
