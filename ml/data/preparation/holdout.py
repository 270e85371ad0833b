"""Held-out split of text files, which are held out whole or cut in two."""

import collections
import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ml.data.preparation.pieces import TRAIN, VALIDATION
from ml.data.reading.hold_out import fraction_of, hash_fraction
from ml.data.reading.options import HoldOutBy
from ml.data.reading.sources import Source, opened_source

_SEARCHED_AT_ONCE = 2**16


class HeldOut(NamedTuple):
    """Held-out split.

    Attributes:
        parts: Split of each text file, by the index of the source.
        cuts: Byte from which the file belongs to the held-out split, for files that are cut.
        num_shared: Number of held-out files that are equal to a file that is trained on.
    """

    parts: dict[int, int]
    cuts: dict[int, int]
    num_shared: int = 0


def hold_out_files(sources: Sequence[Source], fraction: float, by: HoldOutBy = "name") -> HeldOut:
    """Holds out about `fraction` of the text files, whole ones by a hash.

    If that selects less than a quarter or more than four times the requested amount (few files, or one that is most of
    the text), the end of every file is held out instead, from the start of a line on. Cutting requires plain files:
    with compressed files or rows among the sources, whole files are held out.

    Args:
        sources: All sources.
        fraction: Requested fraction of the bytes, in [0, 1).
        by: What of a file is hashed.

    Raises:
        DataError: A file cannot be read.
    """
    files = {index: source for index, source in enumerate(sources) if source.format is None}
    hashes = {index: _hash(file, by) if fraction else 1.0 for index, file in files.items()}
    parts = {index: VALIDATION if number < fraction else TRAIN for index, number in hashes.items()}
    if fraction == 0.0 or len(files) < len(sources) or any(file.is_compressed for file in files.values()):
        return HeldOut(parts, {}, _num_shared(files, parts))
    total = sum(file.size for file in files.values())
    taken = sum(files[index].size for index, part in parts.items() if part == VALIDATION)
    if fraction * total / 4 <= taken <= min(4 * fraction * total, total / 2):
        return HeldOut(parts, {}, _num_shared(files, parts))
    cuts = {i: _line_start(file, file.size - round(file.size * fraction)) for i, file in files.items()}
    return HeldOut(dict.fromkeys(files, TRAIN), {i: cut for i, cut in cuts.items() if cut < files[i].size})


def _hash(source: Source, by: HoldOutBy) -> float:
    return hash_fraction(source.name.encode()) if by == "name" else fraction_of(_digest(source))


def _digest(source: Source) -> bytes:
    digest = hashlib.sha256()
    with opened_source(source) as (stream, _):
        while block := stream.read(_SEARCHED_AT_ONCE):
            digest.update(block)
    return digest.digest()


def _num_shared(files: Mapping[int, Source], parts: Mapping[int, int]) -> int:
    """Returns the number of held-out files that are trained on too; reads only files of which several have one size."""
    by_size: dict[int, list[int]] = collections.defaultdict(list)
    for index, file in files.items():
        by_size[file.size].append(index)
    count = 0
    for alike in by_size.values():
        if len({parts[index] for index in alike}) > 1:
            digests = {index: _digest(files[index]) for index in alike}
            trained = {digests[index] for index in alike if parts[index] == TRAIN}
            count += sum(parts[index] == VALIDATION and digests[index] in trained for index in alike)
    return count


def _line_start(source: Source, offset: int) -> int:
    """Returns the first start of a line at or after `offset`; the end of the file if there is none."""
    with opened_source(source) as (stream, _):
        stream.seek(max(offset - 1, 0))
        position = stream.tell()
        while block := stream.read(_SEARCHED_AT_ONCE):
            if (found := block.find(b"\n")) >= 0:
                return position + found + 1
            position += len(block)
    return source.size
