"""Formats of files, recognized by content: what is read, what is refused, and where."""

import gzip
import io
import json
import os
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pyarrow
import pytest
import zstandard
from pyarrow import parquet
from sources import TEXTS, as_lines, as_table, write_arrow, write_rows

from ml.data import DataError, TextFiles
from ml.data.preparation import Findings, Reading, find_sources, texts_of
from ml.data.reading import records
from ml.data.reading.records import Cursor


def read(path, **options):
    """Returns the documents of a file, and what was found in it."""
    reading, findings = Reading(**options), Findings()
    return list(texts_of(find_sources([path], reading=reading), reading, findings)), findings


def texts(path, **options):
    found, findings = read(path, **options)
    assert not findings.counts
    return found


def write(folder, name, content):
    (folder / name).write_bytes(content)
    return folder / name


# What is refused


def archive_of(text):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", text)
    return file.getvalue()


def tape_of(text):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo("a.txt")
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text.encode()))
    return file.getvalue()


def rows_file(**options):
    file = io.BytesIO()
    write_rows(file, TEXTS, **options)
    return file.getvalue()


REFUSED = {
    "one JSON object": ("a.json", b'{\n "text": "a"\n}\n', "not a known form of JSON"),
    "one JSON object, no suffix": ("a", b'{\n  "name": "package",\n  "text": [1]}', "not a known form of JSON"),
    "a JSON string": ("a.json", b'"text"', "not a known form of JSON"),
    "zip": ("a.txt", archive_of("some text"), "is a zip archive; unpack it"),
    "tar, compressed": ("a.tar.gz", gzip.compress(tape_of("some text")), "is a tar archive; unpack it"),
    "PDF": ("a.txt", b"%PDF-1.7\n%text", "is a PDF; convert it to text"),
    "UTF-16": ("a.txt", "some text".encode("utf-16"), "is UTF-16; convert it to UTF-8"),
    "KOI8-R": ("a.txt", ("текст " * 100).encode("koi8-r"), "is not UTF-8: 500 of its first 600 characters are invalid"),
    "zeros": ("a.txt", b"text\n\0\0", "is not text: byte 5 is zero"),
    "no Parquet": ("A.Parquet", b"PAR2", "is not a Parquet file"),
    "damaged Parquet": ("a", b"PAR1" + b"x" * 50, "is not a Parquet file"),
    "Parquet in gzip": ("a.parquet.gz", gzip.compress(rows_file()), "a compressed Parquet file; decompress it"),
    "no Arrow": ("a.arrow", b"text", "is not an Arrow file"),
    "damaged Arrow": ("a", b"\xff\xff\xff\xff" + b"x" * 50, "truncated or damaged"),
    "not compressed": ("a.txt.gz", b"some text", "truncated or damaged: it is not compressed, as .gz says"),
    "truncated Zstandard": ("a.txt", zstandard.compress(os.urandom(3000))[:-9], "is truncated or damaged"),
    "no Zstandard": ("a.txt", b"\x28\xb5\x2f\xfd" + b"x" * 300, "is truncated or damaged"),
    "array without end": ("a.json", b'[{"text": "a"}, {"text": "b"}', "JSON array: element 2, byte 29: the array"),
    "array that ends in a text": ("a.json", b'[{"text": "a"}, {"text": "b', r"element 2, byte \d+: Unterminated"),
    "array without comma": ("a.json", b'[{"text": "a"} {"text": "b"}]', "element 1, byte 15: ',' or ']' is missing"),
    "array and more": ("a.json", b'[{"text": "a"}]\n[]', "other content follows the array"),
    "array too deep": ("a.json", b'[{"a":' + b"[" * 200_000, "element 1, byte 1: it is nested too deeply"),
    "array of texts": ("a.json", b'["one", "two"]', r"a\.json, element 1: not a JSON object; --on_error=skip"),
    "no column in CSV": ("a.csv", b"id,body\n1,x\n", r"no column 'text' \(--text_key\); it has 'id', 'body'"),
    "short row": ("a.csv", b"id,text\n1,x\n2\n", r"a\.csv:3: 1 fields, but the header has 2; --on_error=skip skips"),
    "long row": ("a.csv", b"id,text\n1,x, and y\n", r"a\.csv:2: 3 fields, but the header has 2"),
    "open quote": ("a.csv", b'id,text\n1,x\n2,"y\nz', r"a\.csv:3: not a valid row: unexpected end of data"),
    "quote inside": ("a.csv", b'id,text\n1,"x" y\n', r"a\.csv:2: not a valid row: ',' expected after '\"'"),
    "no nested column": (
        "a",
        rows_file(key="text", kind=pyarrow.struct([("body", pyarrow.string())]), of=lambda text: {"body": text}),
        r"no column 'text' \(--text_key\); it has 'id', 'text.body'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_recognized_is_refused_with_its_place(case, tmp_path):
    name, content, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, name, content))
    named = message.replace("--on_error=skip", 'TextFiles.on_error = "skip"').replace("--", "TextFiles.")
    with pytest.raises(DataError, match=named):
        list(TextFiles(str(tmp_path / name)).documents())


# What is text

TEXT = {
    "starts with a brace": ("a.tex", "{\\bf bold} text, and more\n"),
    "code that starts with a brace": ("a.js", "{ let text = 1; }\n"),
    "a list": ("a.md", "[1] Text, by Someone\n[2] another\n"),
    "a link": ("a.md", "[text](http://a.b)\n"),
    "prose with commas": ("a.txt", "text, images and sound\nmore, of it\n"),
    "one column": ("a.txt", "text\nand more\n"),
    "quotes": ("a.json.txt", '"text": said someone\n'),
}


@pytest.mark.parametrize("case", TEXT)
def test_text_is_not_taken_for_something_else(case, tmp_path):
    name, text = TEXT[case]
    assert texts(write(tmp_path, name, text.encode())) == [text]


def test_every_format_is_one_document_on_request(tmp_path):
    path = write(tmp_path, "package.json", b'{\n "text": "a"\n}\n')
    (document,) = TextFiles(str(path), format="text").documents()
    assert document.text == '{\n "text": "a"\n}\n'


# Rows


def test_a_nested_key_is_found_in_every_format(tmp_path):
    nested = [{"data": {"text": text, "n": n}, "text": "other"} for n, text in enumerate(TEXTS)]
    table = pyarrow.Table.from_pylist(nested)
    parquet.write_table(table, tmp_path / "rows", row_group_size=3)
    with pyarrow.ipc.new_stream(tmp_path / "arrow", table.schema) as writer:
        writer.write_table(table)
    write(tmp_path, "lines", "\n".join(map(json.dumps, nested)).encode())
    write(tmp_path, "array", json.dumps(nested).encode())
    for name in ("rows", "arrow", "lines", "array"):
        assert texts(tmp_path / name, text_key="data.text") == TEXTS
    flat = json.dumps({"data.text": "flat", "data": {"text": "nested"}}).encode()
    assert texts(write(tmp_path, "flat", flat), text_key="data.text") == ["flat"]


def test_a_missing_struct_is_an_empty_document(tmp_path):
    table = pyarrow.table({"data": pyarrow.array([{"text": "a"}, None], pyarrow.struct([("text", pyarrow.string())]))})
    parquet.write_table(table, tmp_path / "rows")
    found, findings = read(tmp_path / "rows", text_key="data.text")
    assert found == ["a"]
    assert findings.notes == {"empty_documents": [f"{tmp_path}/rows, row 1 is empty"]}


def test_quoted_fields_are_read_as_written(tmp_path):
    fields = ['a "quoted", word', "two\nlines", "three\r\n\r\nlines\n", " spaces ", ",;\t", "x" * 200_000, '"']
    for delimiter, name in ((",", "a.csv"), ("\t", "a.tsv"), (";", "b.csv")):
        assert texts(write(tmp_path, name, as_table(fields, delimiter))) == fields
    rows = b'id,text\n1,plain\n\n2,"a\n\nb"\n3\n4,"x"y\n5,last'
    found, findings = read(write(tmp_path, "c.csv", rows), on_error="skip")
    assert found == ["plain", "a\n\nb", "last"]
    assert [note.partition(": ")[0] for note in findings.notes["skipped_rows"]] == [
        f"{tmp_path}/c.csv:{n}" for n in (7, 8)
    ]


def test_unknown_bytes_are_replaced_in_their_row_only(tmp_path):
    write(tmp_path, "a.csv", b"id,text\n1,caf\xe9\n2,caf\xc3\xa9\n")
    write(tmp_path, "a.json", b'[{"text": "caf\xe9"}, {"text": "caf\xc3\xa9"}, {"text": "\\ud800"}]')
    for name, count in (("a.csv", 1), ("a.json", 2)):
        found, findings = read(tmp_path / name)
        assert found == ["caf\ufffd", "café", "\ufffd"][: 1 + count]
        assert findings.counts == {"invalid_utf8": count}


def test_an_endless_row_is_skipped_without_being_held(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "LARGEST_RECORD", 50_000)
    monkeypatch.setattr(records, "BLOCK_BYTES", 4_000)
    long = "x" * 400_000
    lines = as_lines(["a", long, "b"])
    table = as_table(["a", long, "b"])
    for name, content, line in (("lines", lines, 2), ("a.csv", table, 3)):
        with pytest.raises(DataError, match=f"{name}:{line}: .*more than 50,000"):
            read(write(tmp_path, name, gzip.compress(content)))
        found, findings = read(tmp_path / name, on_error="skip")
        assert found == ["a", "b"]
        assert findings.counts == {"skipped_rows": 1}
    with pytest.raises(DataError, match=r"element 2, byte .* more than 50,000 bytes"):
        read(write(tmp_path, "a.json", json.dumps([{"text": "a"}, {"text": long}]).encode()))


def test_long_rows_are_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "BLOCK_BYTES", 1000)
    long = ["a", "word \n" * 5000, 'quote " and \\ ' * 3000, "b"]
    write(tmp_path, "lines", as_lines(long))
    write(tmp_path, "array", json.dumps([{"text": text} for text in long]).encode())
    write(tmp_path, "a.csv", as_table(long))
    write_rows(tmp_path / "rows", long)
    write_arrow(tmp_path / "arrow", long, rows_per_batch=4)
    for name in ("lines", "array", "a.csv", "rows", "arrow"):
        assert "".join(texts(tmp_path / name)) == "".join(long), name


# Positions

FORMATS = {
    "lines": lambda path, many: path.write_bytes(as_lines(many)),
    "lines, Zstandard": lambda path, many: path.write_bytes(zstandard.compress(as_lines(many))),
    "array": lambda path, many: path.write_text(json.dumps([{"text": text} for text in many], indent=1)),
    "CSV": lambda path, many: path.write_bytes(as_table(many)),
    "rows": lambda path, many: write_rows(path, many, row_group_size=40),
    "rows, one group": lambda path, many: write_rows(path, many),
    "Arrow": lambda path, many: write_arrow(path, many, rows_per_batch=30),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_reading_continues_at_the_end_of_any_block(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "BLOCK_BYTES", 500)
    many = [f"document {n} {'word ' * (n % 17)}\n" for n in range(150)]
    FORMATS[kind](tmp_path / "a", many)
    (source,) = find_sources([tmp_path / "a"])
    blocks = list(source.format.texts(source.path, Reading().field, Cursor()))
    assert len(blocks) > 10
    assert sum(block.num_bytes for block in blocks) == pytest.approx(source.size, abs=20)
    places = [row.place for block in blocks for row in block.block.rows()]
    for index in np.linspace(0, len(blocks) - 2, 6).astype(int):
        rest = source.format.texts(source.path, Reading().field, blocks[index].end)
        rows = [(row.place, row.load().text) for block in rest for row in block.block.rows()]
        assert [text for _, text in rows] == many[150 - len(rows) :]
        assert [place for place, _ in rows] == places[150 - len(rows) :]
    assert blocks[-1].end is None


# Memory


def test_a_compressed_file_is_never_decompressed_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "LARGEST_RECORD", 2**20)
    line = as_lines(["a"])
    bomb = zstandard.compress(line + b" " * 2**26 + b"\n" + line)
    assert len(bomb) < 2**14
    write(tmp_path, "a", bomb)
    tracemalloc.start()
    found, findings = read(tmp_path / "a", on_error="skip")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == ["a", "a"]
    assert findings.counts == {"skipped_rows": 1}
    assert peak < 24 * 2**20  # of 64 MiB


@pytest.mark.parametrize("name", ["rows", "array", "a.csv", "lines", "arrow"])
def test_a_row_group_is_never_held_whole(name, tmp_path):
    """32 MiB of text, for Parquet in one row group; pyarrow allocates outside of Python."""
    many = [f"{n} {'word ' * 5000}" for n in range(1300)]
    {
        "rows": lambda path: write_rows(path, many, use_dictionary=False),
        "array": lambda path: path.write_text(json.dumps([{"text": text} for text in many])),
        "a.csv": lambda path: path.write_bytes(as_table(many)),
        "lines": lambda path: path.write_bytes(as_lines(many)),
        "arrow": lambda path: write_arrow(path, many, rows_per_batch=100),
    }[name](tmp_path / name)
    pool = pyarrow.system_memory_pool()
    usual = pyarrow.default_memory_pool()
    pyarrow.set_memory_pool(pool)
    tracemalloc.start()
    try:
        before, most = pool.bytes_allocated(), 0
        for text in texts_of(find_sources([tmp_path / name]), Reading(), Findings()):
            most = max(most, pool.bytes_allocated() - before + tracemalloc.get_traced_memory()[0] + len(text))
    finally:
        tracemalloc.stop()
        pyarrow.set_memory_pool(usual)
    assert most < 12 * 2**20
