"""Recognition of formats by the first bytes of a file."""

import json
import re
from pathlib import Path
from typing import NamedTuple

from ml.data.errors import DataError
from ml.data.reading.compression import compression_named, compression_of, opened
from ml.data.reading.formats.arrow import FILE_START, STREAM_START, ArrowTable
from ml.data.reading.formats.delimited import Delimited
from ml.data.reading.formats.json_array import JsonArray
from ml.data.reading.formats.json_lines import JsonLines
from ml.data.reading.formats.json_values import BYTE_ORDER_MARK
from ml.data.reading.formats.parquet import Parquet
from ml.data.reading.options import OptionNames, Reading
from ml.data.reading.records import RecordFormat

_SEARCHED = 2**16
_FEWEST_INVALID = 64

_STRING = rb'"(?:[^"\\]|\\.)*"'
_OBJECT = re.compile(rb"\{\s*" + _STRING + rb"\s*:", re.DOTALL)
_ARRAY_OF_OBJECTS = re.compile(rb"\[\s*(?:\{\s*(?:" + _STRING + rb"\s*:|\})|\]\s*$)", re.DOTALL)
_IDENTIFIER = re.compile(rb"[A-Za-z_]\w{0,63}")

# First bytes of what is neither text nor read here.
_OTHERS = (
    (b"PK\x03\x04", "a zip archive; unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (b"Rar!\x1a\x07", "a rar archive; unpack it"),
    (b"\x04\x22\x4d\x18", "compressed by lz4; compress it as .gz or .zst"),
    (b"\x1f\x9d", "compressed by compress; compress it as .gz or .zst"),
    (b"%PDF-", "a PDF; convert it to text"),
    (b"{\\rtf", "an RTF document; convert it to text"),
    (b"\xd0\xcf\x11\xe0", "a document of Microsoft Office; convert it to text"),
    (b"SQLite format 3", "an SQLite database; export it as JSON lines"),
    (b"\x89HDF", "an HDF5 file; convert it to JSON lines or Parquet"),
    (b"Obj\x01", "an Avro file; convert it to JSON lines or Parquet"),
    (b"\x80\x04", "a pickle; convert it to JSON lines or Parquet"),
    (b"\xff\xfe", "UTF-16; convert it to UTF-8"),
    (b"\xfe\xff", "UTF-16; convert it to UTF-8"),
)
_TAR = slice(257, 262)


class _Head(NamedTuple):
    """Start of a file.

    Attributes:
        content: First bytes, decompressed, without a byte order mark.
        is_whole: True if the file has no others.
        name: Name of the file in lower case, without the suffix of a compression.
    """

    content: bytes
    is_whole: bool
    name: str

    def is_named(self, *suffixes: str) -> bool:
        return self.name.endswith(suffixes)


def recognized(path: Path, reading: Reading) -> RecordFormat | None:
    """Returns the format of a file of records; None if it is a document of plain text.

    The content decides. Names only distinguish what content leaves open: whether the first line of commas is the header
    of a table.

    Args:
        path: The file.
        reading: Options of reading.

    Raises:
        DataError: The file cannot be read, or is neither of a known format nor text.
    """
    try:
        compression = compression_of(path)
    except OSError as error:
        raise DataError(f"cannot read {path} (from {Path.cwd()}): {error.strerror or error}") from error
    promised = compression_named(path.name)
    name = path.name[: -len(promised.suffix)] if promised else path.name
    with opened(path) as content:
        start = content.stream.read(_SEARCHED)
        head = _Head(start.removeprefix(BYTE_ORDER_MARK), not content.stream.read(1), name.lower())
    found = _binary(path, head, compression is not None) or _json(path, head) or _table(head, reading.text_key)
    if found is None:
        if promised is not None and compression is None and start:
            raise DataError(f"{path} is truncated or damaged: it is not compressed, as {promised.suffix} says")
        _check_text(path, head, reading.names)
    return found


def _binary(path: Path, head: _Head, is_compressed: bool) -> RecordFormat | None:
    if head.content.startswith(b"PAR1"):
        if is_compressed:
            raise DataError(f"{path} is a compressed Parquet file; decompress it, Parquet is compressed inside")
        return Parquet()
    if head.content.startswith((FILE_START, STREAM_START)):
        if is_compressed:
            raise DataError(f"{path} is a compressed Arrow file; decompress it")
        return ArrowTable()
    for suffix, name in ((".parquet", "a Parquet file"), (".arrow", "an Arrow file"), (".feather", "an Arrow file")):
        if head.is_named(suffix):
            raise DataError(f"{path} is not {name}: its first bytes are {head.content[:8]!r}")
    for start, kind in _OTHERS:
        if head.content.startswith(start):
            raise DataError(f"{path} is {kind}")
    if head.content[_TAR] == b"ustar":
        raise DataError(f"{path} is a tar archive; unpack it")
    return None


def _json(path: Path, head: _Head) -> RecordFormat | None:
    """Returns the format of JSON; None if it is something else."""
    content = head.content.lstrip()
    is_lines = head.is_named(".jsonl", ".ndjson")
    if _ARRAY_OF_OBJECTS.match(content) or (head.is_named(".json") and content.startswith(b"[")):
        return JsonArray()
    if is_lines or _has_object_in_a_line(head):
        return JsonLines()
    if _OBJECT.match(content) or (head.is_named(".json") and content):
        raise DataError(
            f"{path} is not a known form of JSON: it must have one object a line, or be a single array of objects"
        )
    return None


def _has_object_in_a_line(head: _Head) -> bool:
    """Returns True if one of the first lines is a JSON object, or begins as one and is longer than the head."""
    if not head.content.lstrip().startswith(b"{"):
        return False
    lines = head.content.split(b"\n")
    complete, rest = (lines, b"") if head.is_whole else (lines[:-1], lines[-1])
    return any(map(_is_object, complete)) or bool(not complete and _OBJECT.match(rest.lstrip()))


def _is_object(line: bytes) -> bool:
    if not line.lstrip().startswith(b"{"):
        return False
    try:
        return bool(json.loads(line.decode("utf-8", errors="replace")))
    except (ValueError, RecursionError):
        return False


def _table(head: _Head, text_key: str) -> RecordFormat | None:
    """Returns the format of a table; None if neither the name nor the header is one of a table."""
    header, *others = head.content.split(b"\n", 2)
    named = "," if head.is_named(".csv") else "\t" if head.is_named(".tsv", ".tab") else None
    for delimiter in dict.fromkeys((named or ",", ",", "\t", ";", "|")):
        columns = [cell.strip(b'" ') for cell in header.strip().split(delimiter.encode())]
        if len(columns) > 1 and text_key.encode() in columns:
            continues = delimiter.encode() in b"".join(others)
            if named or (continues and all(map(_IDENTIFIER.fullmatch, columns))):
                return Delimited(delimiter)
    return Delimited(named) if named and head.content else None


def _check_text(path: Path, head: _Head, names: OptionNames) -> None:
    """Checks that a document is text.

    Raises:
        DataError: It contains zero bytes, or is not UTF-8 for the most part.
    """
    content, advice = head.content, f"List only text files, or narrow {names.name('pattern')}"
    if (place := content.find(0)) >= 0:
        raise DataError(f"{path} is not text: byte {place} is zero. {advice}")
    text = content.decode("utf-8", errors="replace")
    if (invalid := text.count("\ufffd")) > max(_FEWEST_INVALID, len(text) // 2):
        raise DataError(f"{path} is not UTF-8: {invalid:,} of its first {len(text):,} characters are invalid. {advice}")
