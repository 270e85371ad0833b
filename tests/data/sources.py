"""Sources of every kind for `prepare`, and readers of its output."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os

import numpy as np
import pyarrow
import pyarrow.ipc
import zstandard
from pyarrow import parquet

from ml.data.token_files.reading import TokenFolder

TEXTS = ["first", "second one\nin two lines\n", "schön 漢字 😀", " ", "x" * 3000, "end\n" * 700, "the last"]


class Silent:
    """Collects reported messages."""

    def __init__(self):
        self.said = []

    def start(self, num_bytes, total_bytes):
        self.begun_at = num_bytes

    def advance(self, num_bytes, num_tokens):
        pass

    def say(self, message):
        self.said.append(message)


def documents_of(folder: TokenFolder) -> list[str]:
    """Returns the documents without their separators."""
    tokens = np.split(folder.read(0, folder.num_tokens), folder.document_ends)[:-1]
    end = folder.end_of_document
    assert end is None or all(document[-1] == end for document in tokens)
    return [folder.tokenizer.decode(document if end is None else document[:-1]) for document in tokens]


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def as_lines(texts, key="text") -> bytes:
    return b"".join(json.dumps({"id": n, key: text}).encode() + b"\n" for n, text in enumerate(texts))


def write_rows(file, texts, key="text", kind=None, of=lambda text: text, **options):
    column = pyarrow.array(map(of, texts), kind or pyarrow.string())
    parquet.write_table(pyarrow.table({"id": list(range(len(texts))), key: column}), file, **options)


def as_table(texts, delimiter=",", line_end="\r\n") -> bytes:
    """Returns a CSV whose fields are quoted where Python's library quotes them."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, lineterminator=line_end)
    writer.writerows([("id", "text", "note"), *((n, text, "a,b") for n, text in enumerate(texts))])
    return file.getvalue().encode()


def write_arrow(file, texts, opened=pyarrow.ipc.new_stream, rows_per_batch=2):
    table = pyarrow.table({"id": list(range(len(texts))), "text": texts})
    with opened(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows_per_batch)


WRITERS = {
    "text": lambda folder: [(folder / f"{n}.txt").write_text(text) for n, text in enumerate(TEXTS)],
    "lines": lambda folder: (folder / "a.jsonl").write_bytes(as_lines(TEXTS)),
    "lines, not ended": lambda folder: (folder / "a.ndjson").write_bytes(b"\n" + as_lines(TEXTS)[:-1]),
    "lines, two files": lambda folder: [
        (folder / f"{n}.jsonl").write_bytes(as_lines(part)) for n, part in enumerate((TEXTS[:3], TEXTS[3:]))
    ],
    "lines, gzip": lambda folder: (folder / "a.jsonl.gz").write_bytes(gzip.compress(as_lines(TEXTS))),
    "lines, bzip2": lambda folder: (folder / "a.jsonl.bz2").write_bytes(bz2.compress(as_lines(TEXTS))),
    "text, xz": lambda folder: [
        (folder / f"{n}.txt.xz").write_bytes(lzma.compress(text.encode())) for n, text in enumerate(TEXTS)
    ],
    "rows": lambda folder: write_rows(folder / "a.parquet", TEXTS),
    "rows, groups": lambda folder: write_rows(folder / "a.parquet", TEXTS, row_group_size=2),
    "rows, large strings": lambda folder: write_rows(folder / "a.parquet", TEXTS, kind=pyarrow.large_string()),
    "rows, dictionary": lambda folder: write_rows(
        folder / "a.parquet", TEXTS, kind=pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    ),
    "rows, binary": lambda folder: write_rows(folder / "a.parquet", [t.encode() for t in TEXTS], kind=pyarrow.binary()),
    "rows, unusual name": lambda folder: write_rows(folder / "part-0", TEXTS),
    "lines, suffix of JSON": lambda folder: (folder / "c4.json.gz").write_bytes(gzip.compress(as_lines(TEXTS))),
    "lines, upper case": lambda folder: (folder / "A.JSONL").write_bytes(as_lines(TEXTS)),
    "lines, no suffix": lambda folder: (folder / "dolma-0001").write_bytes(b"\xef\xbb\xbf" + as_lines(TEXTS)),
    "lines, CRLF": lambda folder: (folder / "a.txt").write_bytes(as_lines(TEXTS).replace(b"\n", b"\r\n")),
    "lines, Zstandard": lambda folder: (folder / "a.jsonl.zst").write_bytes(
        zstandard.compress(as_lines(TEXTS[:3])) + zstandard.compress(as_lines(TEXTS)[len(as_lines(TEXTS[:3])) :])
    ),
    "array": lambda folder: (folder / "a.json").write_text(json.dumps([{"text": text} for text in TEXTS])),
    "array, indented": lambda folder: (folder / "a").write_text(
        "\ufeff\n" + json.dumps([{"n": [1], "text": text} for text in TEXTS], indent=2, ensure_ascii=False) + "\n\n"
    ),
    "CSV": lambda folder: (folder / "a.csv").write_bytes(as_table(TEXTS)),
    "CSV, no suffix": lambda folder: (folder / "a.txt").write_bytes(b"\xef\xbb\xbf" + as_table(TEXTS, ";", "\n")),
    "TSV, gzip": lambda folder: (folder / "a.TSV.gz").write_bytes(gzip.compress(as_table(TEXTS, "\t", "\n"))),
    "Arrow": lambda folder: write_arrow(folder / "a.arrow", TEXTS),
    "Arrow, file": lambda folder: write_arrow(folder / "a", TEXTS, pyarrow.ipc.new_file, 3),
    "mixed": lambda folder: [
        (folder / "0.txt").write_text(TEXTS[0]),
        (folder / "1.jsonl").write_bytes(as_lines(TEXTS[1:3])),
        write_rows(folder / "2.parquet", TEXTS[3:5]),
        (folder / "3").write_text(TEXTS[5]),
        (folder / "sub").mkdir(),
        (folder / "sub" / "4.md").write_text(TEXTS[6]),
        (folder / ".hidden").write_text("no"),
    ],
}  # fmt: skip


def run_in_a_process(function) -> int:
    """Forks, calls `function` in a new session, and returns the process id."""
    child = os.fork()
    if child == 0:
        os.setsid()
        code = 1
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    return child
