"""Which text files are held out, and where long ones are cut in two."""

from collections.abc import Sequence
from typing import NamedTuple

from ml.data.preparation.pieces import TRAIN, VALIDATION
from ml.data.preparation.sources import Source, opened_source
from ml.data.reading.hold_out import hash_fraction

_SEARCHED_AT_ONCE = 2**16


class HeldOut(NamedTuple):
    """parts: the part of each text file, by the number of the source. cuts: where it goes over to the held-out part."""

    parts: dict[int, int]
    cuts: dict[int, int]


def hold_out_files(sources: Sequence[Source], fraction: float) -> HeldOut:
    """Holds out about `fraction` of the text files, whole ones by the hash of their names.

    Where this takes less than a quarter or more than four times of what was asked (few files, or one that is most of
    the text), the end of every file is held out instead, from the start of a line on. That takes plain files; when
    there are compressed ones or rows too, whole files are held out in any case.

    Raises:
        DataError: A file cannot be read.
    """
    files = {index: source for index, source in enumerate(sources) if source.kind == "text"}
    parts = {i: VALIDATION if hash_fraction(file.name.encode()) < fraction else TRAIN for i, file in files.items()}
    if fraction == 0.0 or len(files) < len(sources) or any(file.is_compressed for file in files.values()):
        return HeldOut(parts, {})
    total = sum(file.size for file in files.values())
    taken = sum(files[index].size for index, part in parts.items() if part == VALIDATION)
    if fraction * total / 4 <= taken <= min(4 * fraction * total, total / 2):
        return HeldOut(parts, {})
    cuts = {i: _line_start(file, file.size - round(file.size * fraction)) for i, file in files.items()}
    return HeldOut(dict.fromkeys(files, TRAIN), {i: cut for i, cut in cuts.items() if cut < files[i].size})


def _line_start(source: Source, offset: int) -> int:
    """The first start of a line at or behind `offset`; the end of the file where there is none."""
    with opened_source(source) as (stream, _):
        stream.seek(max(offset - 1, 0))
        place = stream.tell()
        while block := stream.read(_SEARCHED_AT_ONCE):
            if (found := block.find(b"\n")) >= 0:
                return place + found + 1
            place += len(block)
    return source.size
