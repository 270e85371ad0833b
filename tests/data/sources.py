"""Sources of every kind for `prepare`, and readers of its output."""

import bz2
import gzip
import json
import lzma
import os

import numpy as np
import pyarrow
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


def write_rows(file, texts, key="text", kind=None, **options):
    column = pyarrow.array(texts, kind or pyarrow.string())
    parquet.write_table(pyarrow.table({"id": list(range(len(texts))), key: column}), file, **options)


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
