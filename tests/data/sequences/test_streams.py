"""Document streams against plain arrays."""

import itertools

import numpy as np
import pytest
from prepared import write_folder

from ml.data.datasets.token_data import FolderStream
from ml.data.sequences.streams import ArrayStream, JoinedStream, StreamPart
from ml.data.token_files.reading import TokenFolder

DOCUMENTS = [[1, 2, 3, 0], [4, 0], [5, 6, 7, 8, 9, 0], [0], [10, 11, 0]]


def stream_of(documents):
    return ArrayStream.of([np.array(document, dtype=np.uint8) for document in documents], num_end_tokens=1)


def in_memory(_):
    return stream_of(DOCUMENTS)


def joined_stream(_):
    return JoinedStream([stream_of(part) for part in (DOCUMENTS[:2], [], DOCUMENTS[2:3], DOCUMENTS[3:])])


def part_of_a_longer_one(_):
    return StreamPart(stream_of([[99, 98, 0], *DOCUMENTS, [97, 96]]), 3, 19)


def prepared(path):
    texts = ["".join(map(chr, document[:-1])) for document in DOCUMENTS]
    return FolderStream(TokenFolder(write_folder(path, texts, shard_tokens=5)))


@pytest.mark.parametrize("build", [in_memory, joined_stream, part_of_a_longer_one, prepared])
def test_a_stream_is_the_concatenation_of_its_documents(build, tmp_path):
    stream, flat = build(tmp_path), list(itertools.chain(*DOCUMENTS))
    assert stream.num_tokens == len(flat)
    assert stream.ends.tolist() == np.cumsum([len(document) for document in DOCUMENTS]).tolist()
    assert stream.num_end_tokens == 1
    for start in range(len(flat)):
        for stop in range(start, len(flat) + 1):
            assert stream.read(start, stop).tolist() == flat[start:stop]
    starts = np.array([7, 0, 3])
    assert stream.gather(starts, 9).tolist() == [flat[start : start + 9] for start in starts]
    clipped = stream.clipped(np.array([10, 2]), 8, 13)
    assert clipped.tolist() == [[*flat[10:13], *[flat[12]] * 5], flat[2:10]]


def test_a_slice_through_documents_ends_at_the_cut():
    part = StreamPart(stream_of(DOCUMENTS), 2, 9)
    assert part.read(0, 7).tolist() == [3, 0, 4, 0, 5, 6, 7]
    assert part.ends.tolist() == [2, 4, 7]
    empty = StreamPart(stream_of(DOCUMENTS), 3, 3)
    assert (empty.num_tokens, empty.ends.tolist()) == (0, [])
