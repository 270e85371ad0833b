"""One reader for all kinds of data, compressed or not."""

import bz2
import gzip
import json
import lzma

import numpy as np
import pyarrow
import pyarrow.ipc
import pytest
from pyarrow import parquet

from ml.data import ChatFiles, DataError, ImageTextFiles, TextFiles
from ml.data.preparation import Findings, Reading, find_sources, texts_of
from ml.data.reading.decoding import decode
from ml.data.reading.hold_out import hash_fraction

COMPRESSIONS = {"": lambda content: content, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
CHAT = {"prompt": "2 + 2 =", "completion": " 4"}


def texts(path):
    return [document.text for document in TextFiles(str(path)).documents()]


def conversations(path):
    return [one.content for one in ChatFiles(str(path)).conversations()]


def images(path):
    np.save(path.parent / "a.npy", np.zeros((2, 2, 3), np.uint8))
    return [image.caption for image in ImageTextFiles(str(path)).captioned_images((2, 2))]


def prepared(path):
    return list(texts_of(find_sources([path]), Reading(), Findings()))


READERS = {
    "text": (texts, "text.txt", "two\nlines\n", ["two\nlines\n"]),
    "chat": (conversations, "chat.jsonl", json.dumps(CHAT), [("2 + 2 =", " 4")]),
    "images": (images, "images.jsonl", json.dumps({"image": "a.npy", "text": "black"}), ["black"]),
    "prepared text": (prepared, "text.txt", "two\nlines\n", ["two\nlines\n"]),
    "prepared lines": (prepared, "text.jsonl", json.dumps({"text": "one"}), ["one"]),
}


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("kind", READERS)
def test_every_reader_decompresses(tmp_path, kind, suffix):
    read, name, content, expected = READERS[kind]
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(COMPRESSIONS[suffix](content.encode()))
    assert read(path) == expected


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
@pytest.mark.parametrize("kind", READERS)
def test_every_reader_refuses_a_truncated_file(tmp_path, kind, suffix):
    read, name, content, _ = READERS[kind]
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(COMPRESSIONS[suffix](content.encode() * 1000)[:-9])
    with pytest.raises(DataError, match="is truncated or damaged"):
        read(path)


def test_conversations_are_read_from_every_format_and_from_folders(tmp_path):
    """Tables have every key in every row, null where it is missing."""
    messages = [
        [{"role": "user", "content": "2 + 2 ="}, {"role": "assistant", "content": " 4", "weight": 1}],
        [{"role": "system", "content": "Add."}, {"role": "assistant", "content": "漢"}],
    ]
    talks = [{"messages": one} for one in messages]
    expected = [
        (message["role"], message["content"], {"role": message["role"], "content": message["content"]})
        for one in messages
        for message in one
    ]
    table = pyarrow.Table.from_pylist(talks)
    parquet.write_table(table, tmp_path / "rows.parquet")
    with pyarrow.ipc.new_stream(tmp_path / "rows.arrow", table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "array.json").write_text(json.dumps(talks, indent=1))
    (tmp_path / "lines.txt").write_text("\n".join(map(json.dumps, talks)))
    for name in ("rows.parquet", "rows.arrow", "array.json", "lines.txt"):
        read = [message for one in conversations(tmp_path / name) for message in one]
        assert [(message.role, message.fields["content"], message.fields) for message in read] == expected, name
    (tmp_path / "pairs.csv").write_text('prompt,completion\n2 + 2 =," 4"\n')
    assert conversations(tmp_path / "pairs.csv") == [("2 + 2 =", " 4")]
    assert len(conversations(tmp_path)) == 9
    only = ChatFiles(str(tmp_path), pattern="*.parquet").conversations()
    assert [one.place for one in only] == [f"{tmp_path}/rows.parquet, row {n}" for n in (0, 1)]
    (tmp_path / "text.md").write_text("Hello.")
    with pytest.raises(DataError, match=r"text\.md is plain text; it must be JSON lines"):
        conversations(tmp_path)


def test_malformed_image_lines_are_skipped_on_request(tmp_path, caplog):
    np.save(tmp_path / "a.npy", np.zeros((2, 2, 3), np.uint8))
    lines = ['{"image": "a.npy", "text": "black"}', "{", '{"image": "a.npy"}']
    (tmp_path / "images.jsonl").write_text("\n".join(lines))
    corpus = ImageTextFiles(str(tmp_path / "images.jsonl"), on_error="skip")
    assert [image.caption for image in corpus.captioned_images((2, 2))] == ["black"]
    assert "2 invalid rows skipped" in caplog.text
    with pytest.raises(DataError, match=r'images\.jsonl:2: not JSON: .*; ImageTextFiles\.on_error = "skip"'):
        ImageTextFiles(str(tmp_path / "images.jsonl")).captioned_images((2, 2))


def test_invalid_bytes_are_reported_and_replaced():
    text, problem, count = decode(b"a\xffb\xef\xbf\xbd\xfe", "f:1", offset=10)
    assert (text, count) == ("a\ufffdb\ufffd\ufffd", 2)
    assert problem == "f:1: byte 11 (0xff) is not UTF-8"
    assert decode("é".encode(), "f") == ("é", None, 0)


def test_shares_are_uniform():
    shares = np.array([hash_fraction(str(number).encode()) for number in range(10_000)])
    counts, _ = np.histogram(shares, bins=10, range=(0.0, 1.0))
    assert counts.sum() == 10_000
    assert abs(counts - 1000).max() < 150  # five standard deviations of a binomial count
