"""`prepare` from sources to token files, compared with documents encoded one by one."""

import gzip
import json
import os
import shutil

import numpy as np
import pyarrow
import pytest
import small_tokenizers
import tokenizers
from sources import TEXTS, WRITERS, as_lines, contents, documents_of, run_in_a_process, write_rows

from ml.data import ByteTokenizer, DataError
from ml.data.preparation import cutting, encoding, preparing
from ml.data.tokenizers import HuggingFaceTokenizer


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("make", small_tokenizers.ALL, ids=lambda make: make.__name__)
def test_documents_are_encoded_in_order(kind, make, prepared, small_tasks, tmp_path):
    WRITERS[kind](tmp_path / "in")
    tokenizer = make(tmp_path / "tokenizer")
    summary, display = prepared(tokenizer=tokenizer)
    (folder,) = summary.folders
    expected = [np.append(tokenizer.encode(text), tokenizer.end_of_document) for text in TEXTS]
    assert np.array_equal(folder.read(0, folder.num_tokens), np.concatenate(expected))
    assert np.array_equal(folder.document_ends, np.cumsum([len(tokens) for tokens in expected]))
    assert folder.num_bytes == sum(len(text.encode()) for text in TEXTS)
    assert not summary.counts
    assert not display.said
    folder.verify()


@pytest.mark.parametrize("kind", ["text", "lines", "rows, groups", "CSV", "mixed"])
def test_the_output_is_the_same_for_any_number_of_processes(kind, prepared, small_tasks, tmp_path):
    WRITERS[kind](tmp_path / "in")
    tokenizer = small_tokenizers.hugging_face(tmp_path / "tokenizer")
    for num_workers in (1, 2, 5):
        prepared(
            f"out{num_workers}", num_workers=num_workers, tokenizer=tokenizer, validation_fraction=0.3, shard_tokens=90
        )
    assert len(list((tmp_path / "out1").rglob("*.tokens"))) > 10
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2") == contents(tmp_path / "out5")


def test_a_long_document_is_encoded_in_pieces_with_equal_tokens(prepared, small_tasks, tmp_path, monkeypatch):
    text = small_tokenizers.some_text()[:30_000] + "é" * 2000 + "\n" * 2000 + "no line end " * 300
    (tmp_path / "in" / "a.txt").write_text(text)
    for make in small_tokenizers.ALL:
        sizes = []
        tokenizer = make(tmp_path / "tokenizer")
        encode = type(tokenizer).encode_batch
        monkeypatch.setattr(
            type(tokenizer),
            "encode_batch",
            lambda self, texts, encode=encode, sizes=sizes: sizes.extend(map(len, texts)) or encode(self, texts),
        )
        (folder,) = prepared(make.__name__, tokenizer=tokenizer)[0].folders
        assert folder.read(0, folder.num_tokens - 1).tolist() == tokenizer.encode(text).tolist(), make
        assert folder.document_ends.tolist() == [folder.num_tokens]
        assert len(sizes) == 1 if make is small_tokenizers.sentence_piece else len(sizes) > 20


@pytest.mark.parametrize("make", [small_tokenizers.hugging_face, small_tokenizers.tiktoken])
@pytest.mark.parametrize("end", ["\n", " ", "\r", "\u2028", "。", "\x85"])
def test_a_long_row_is_encoded_in_pieces_whatever_its_line_ends(make, end, prepared, tmp_path, monkeypatch):
    tokenizer = make(tmp_path / "tokenizer")
    text = f"schön漢字{end}" * 30_000
    (tmp_path / "in" / "a.jsonl").write_bytes(as_lines([text, "the next"]))
    (tmp_path / "in" / "b.txt").write_text(text)
    sizes = []
    encode = type(tokenizer).encode_batch
    monkeypatch.setattr(
        type(tokenizer),
        "encode_batch",
        lambda self, texts: sizes.append(sum(len(text.encode()) for text in texts)) or encode(self, texts),
    )
    (folder,) = prepared(tokenizer=tokenizer)[0].folders
    monkeypatch.undo()
    assert max(sizes) < 2**18 < len(text.encode())
    expected = [[*tokenizer.encode(part), tokenizer.end_of_document] for part in (text, "the next", text)]
    assert folder.read(0, folder.num_tokens).tolist() == [token for tokens in expected for token in tokens]
    assert folder.num_bytes == 2 * len(text.encode()) + 8


def test_text_without_ends_of_words_is_refused_with_its_place(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(cutting, "_LARGEST_WORD", 300_000)
    monkeypatch.setattr(cutting, "_LARGEST_WHOLE", 300_000)
    (tmp_path / "in" / "a.txt").write_text("some words\n" * 20_000 + "x" * 600_000)
    for make, place in (
        (small_tokenizers.tiktoken, r"a\.txt: no word ends in 300,000 bytes from byte 219999 on: split the file"),
        (small_tokenizers.sentence_piece, r"a\.txt has more than 300,000 bytes, and this tokenizer cannot cut text"),
    ):
        with pytest.raises(DataError, match=place):
            prepared(make.__name__, tokenizer=make(tmp_path / "tokenizer"))


def test_a_row_that_the_tokenizer_cannot_encode_is_named_or_skipped(prepared, tmp_path, monkeypatch):
    def encode(self, text, plain=ByteTokenizer.encode):
        if "boom" in text:
            raise RuntimeError("stack overflow")
        return plain(self, text)

    monkeypatch.setattr(ByteTokenizer, "encode", encode)
    long = "boom" + "words " * 60_000  # several parts, of which the first fails
    (tmp_path / "in" / "a.jsonl").write_bytes(as_lines(["one", "boom", "two", long, "three"]))
    with pytest.raises(DataError, match=r"a\.jsonl:2: the tokenizer cannot encode it: stack overflow; --on_error=skip"):
        prepared()
    summary, display = prepared("out of skipping", on_error="skip")
    assert documents_of(summary.folders[0]) == ["one", "two", "three"]
    assert summary.folders[0].num_bytes == 11
    assert summary.counts == {"skipped_rows": 2}
    assert [said.partition(": ")[0][-9:] for said in display.said] == ["a.jsonl:2", "a.jsonl:4"]
    (tmp_path / "in" / "b.txt").write_text("boom")
    with pytest.raises(DataError, match=r"b\.txt: the tokenizer cannot encode it: stack overflow$"):
        prepared("out of text", on_error="skip", pattern="*.txt")


def test_unknown_characters_are_counted(prepared, tmp_path):
    (tmp_path / "in" / "a.jsonl").write_bytes(as_lines(["abba", "a 漢 b", "漢字 a"]))
    models = tokenizers.models
    vocabulary = {"a": 0, "b": 1, " ": 2, "?": 3}
    for name, model, expected in (
        ("dropped", models.BPE(vocab=vocabulary, merges=[]), ["abba", "a  b", " a"]),
        ("replaced", models.BPE(vocab=vocabulary, merges=[], unk_token="?"), ["abba", "a ? b", "?? a"]),
    ):
        library = tokenizers.Tokenizer(model)
        library.decoder = tokenizers.decoders.Fuse()
        library.save(str(tmp_path / f"{name}.json"))
        summary, display = prepared(name, tokenizer=HuggingFaceTokenizer(str(tmp_path / f"{name}.json")))
        (folder,) = summary.folders
        texts = np.split(folder.read(0, folder.num_tokens), folder.document_ends)[:-1]
        assert ["".join("ab ?"[token] for token in tokens) for tokens in texts] == expected
        assert summary.counts == {"unknown_characters": 3}
        assert folder.manifest["text"]["unknown_characters"] == 3
        assert display.said == [
            f"{tmp_path}/in/a.jsonl:{n + 1}: {n} characters unknown to the tokenizer" for n in (1, 2)
        ]
    known = small_tokenizers.hugging_face(tmp_path / "tokenizer")
    assert not prepared("known", tokenizer=known)[0].counts
    library = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))  # lacks most bytes
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.save(str(tmp_path / "bytes.json"))
    summary, _ = prepared("bytes", tokenizer=HuggingFaceTokenizer(str(tmp_path / "bytes.json")))
    assert summary.counts == {"unknown_characters": 3 + 2 + 6 + 1}


# Malformed input


def test_a_malformed_line_stops_with_its_place_and_skip_resumes_there(prepared, small_tasks, tmp_path):
    lines = [json.dumps({"text": f"line {n}" * 20}).encode() for n in range(60)]
    broken = {
        17: (b'{"text": "cut', "not JSON"),
        18: (b"[1]", "not a JSON object"),
        40: (b'{"body": "x", "id": 1}', r"no key 'text' \(--text_key\), only 'body', 'id'"),
        41: (b'{"text": 3}', "'text' is 3, not a string"),
        42: (b'{"text": null}', "'text' is null, not a string"),
        43: (b"[" * 100_000, "not JSON"),
    }
    for number, (line, _) in broken.items():
        lines[number - 1] = line
    (tmp_path / "in" / "a.jsonl").write_bytes(b"\n".join(lines))
    for number, (_, message) in broken.items():
        (tmp_path / "in" / "b.jsonl").write_bytes(b"\n" * (number - 1) + lines[number - 1])
        with pytest.raises(DataError, match=rf"b\.jsonl:{number}: {message}.*--on_error=skip"):
            prepared("other", pattern="b.*")
        shutil.rmtree(tmp_path / "other")
    for num_workers in (1, 3):
        with pytest.raises(DataError, match=r"a\.jsonl:17: not JSON"):
            prepared(pattern="a.*", num_workers=num_workers)
    before = json.loads((tmp_path / "out" / "progress.json").read_text())
    assert before["position"][2] > 5  # lines that are not read again
    summary, display = prepared(pattern="a.*", on_error="skip")
    assert display.begun_at > 0
    assert summary.counts == {"skipped_rows": 6}
    assert [said.partition(": ")[0][-4:] for said in display.said] == ["l:17", "l:18", "l:40"]
    expected = [f"line {n}" * 20 for n in range(60) if n + 1 not in broken]
    assert documents_of(summary.folders[0]) == expected
    prepared("anew", pattern="a.*", on_error="skip")
    assert contents(tmp_path / "out") == contents(tmp_path / "anew")


def test_invalid_utf8_is_replaced_and_counted_or_stops(prepared, tmp_path):
    (tmp_path / "in" / "a.txt").write_bytes(b"one\xfftwo\xc3\n\xe6\xbc")
    (tmp_path / "in" / "b.jsonl").write_bytes(b'{"text": "caf\xe9 \xef\xbf\xbd"}\n{"text": "half \\ud83d of it"}\n')
    write_rows(tmp_path / "in" / "c.parquet", [b"good", b"b\xffd"], kind=pyarrow.binary(), row_group_size=1)
    summary, display = prepared()
    assert documents_of(summary.folders[0]) == [
        "one\ufffdtwo\ufffd\n\ufffd",
        "caf\ufffd \ufffd",
        "half \ufffd of it",
        "good",
        "b\ufffdd",
    ]
    assert summary.counts == {"invalid_utf8": 6}
    assert "a.txt: byte 3 (0xff) is not UTF-8; 3 invalid sequences here replaced by U+FFFD" in display.said[0]
    for name, place in (("a", "a.txt: byte 3"), ("b", r"b.jsonl:1: byte 13"), ("c", "c.parquet, row 1: byte 1")):
        with pytest.raises(DataError, match=f"{place} .*is not UTF-8; --invalid_utf8=replace replaces such bytes"):
            prepared(f"strict {name}", pattern=f"{name}.*", invalid_utf8="error")
    (tmp_path / "in" / "d.jsonl").write_bytes(b'{"text": "half \\ud83d of it"}\n')
    with pytest.raises(DataError, match=r"d.jsonl:1 has a lone surrogate"):
        prepared("strict d", pattern="d.*", invalid_utf8="error")


def test_empty_documents_are_skipped_and_counted(prepared, tmp_path):
    (tmp_path / "in" / "a.txt").write_text("")
    (tmp_path / "in" / "b.jsonl").write_bytes(as_lines(["", "one", "", "\n"]) + b"\n  \n")
    (tmp_path / "in" / "c.jsonl").write_bytes(b"")
    write_rows(tmp_path / "in" / "d.parquet", ["", None, "two"])
    write_rows(tmp_path / "in" / "e.parquet", [])
    summary, display = prepared()
    assert documents_of(summary.folders[0]) == ["one", "\n", "two"]
    assert summary.counts == {"empty_documents": 5}
    assert summary.folders[0].manifest["text"]["empty_documents"] == 5
    assert "a.txt is empty" in display.said[0]


def test_sources_without_documents_are_an_error(prepared, tmp_path):
    (tmp_path / "in" / "b.jsonl").write_bytes(as_lines(["", ""]))
    write_rows(tmp_path / "in" / "e.parquet", [])
    with pytest.raises(DataError, match="there is no document in 2 files: 2 empty documents skipped"):
        prepared()
    with pytest.raises(DataError, match=r"no file in .* matches 'nothing'"):
        prepared(pattern="nothing")
    with pytest.raises(DataError, match="no such file or folder"):
        prepared(paths=[tmp_path / "nowhere"])


def test_zero_characters_do_not_end_a_document(prepared, tmp_path):
    (tmp_path / "in" / "a.jsonl").write_bytes(b'{"text": "one\\u0000two\\u0000"}')
    summary, _ = prepared()
    assert documents_of(summary.folders[0]) == ["one\ufffdtwo\ufffd"]
    assert summary.counts == {"zero_characters": 2}
    assert (summary.folders[0].read(0, summary.folders[0].num_tokens) == 0).sum() == 1


def test_a_binary_file_is_refused(prepared, tmp_path):
    (tmp_path / "in" / "a.bin").write_bytes(b"ab\0cd")
    with pytest.raises(DataError, match=r"a\.bin is not text: byte 2 is zero"):
        prepared()
    for name, content, message in (
        ("b.parquet", b"no parquet at all", r"b\.parquet is not a Parquet file"),
        ("c.jsonl.gz", gzip.compress(as_lines(TEXTS))[:-20], r"c\.jsonl\.gz is truncated or damaged"),
        ("d.txt.xz", b"no xz", r"d\.txt\.xz is truncated or damaged"),
        ("e.txt.gz", b"no gzip", r"e\.txt\.gz is truncated or damaged"),
    ):
        (tmp_path / "in" / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            prepared(f"out of {name}", pattern=name)


def test_a_missing_column_is_named(prepared, tmp_path):
    write_rows(tmp_path / "in" / "a.parquet", ["some"], key="body")
    with pytest.raises(DataError, match=r"a\.parquet has no column 'text' \(--text_key\); it has 'id', 'body'"):
        prepared()
    assert documents_of(prepared("other", text_key="body")[0].folders[0]) == ["some"]
    with pytest.raises(DataError, match=r"a\.parquet: the column 'id' \(--text_key\) is int64, not text"):
        prepared("another", text_key="id")


# Held-out split


def test_rows_are_held_out_by_their_text(prepared, tmp_path):
    texts = [f"document {n % 1000}" for n in range(1200)]
    (tmp_path / "in" / "a.jsonl").write_bytes(as_lines(texts))
    train, validation = (documents_of(f) for f in prepared(validation_fraction=0.1)[0].folders)
    assert sorted(train + validation) == sorted(texts)
    assert 70 < len(set(validation)) < 130
    assert not set(train) & set(validation)  # duplicates are on the same side
    write_rows(tmp_path / "in" / "a.parquet", texts[:500])
    again = prepared("rows", pattern="*.parquet", validation_fraction=0.1)[0].folders[1]
    assert set(documents_of(again)) == {text for text in validation if text in texts[:500]}


def test_with_many_files_the_split_is_by_file(prepared, tmp_path):
    for n in range(200):
        (tmp_path / "in" / f"{n:03d}.txt").write_text(f"text {n}\nsecond line\n")
    train, validation = (documents_of(f) for f in prepared(validation_fraction=0.1)[0].folders)
    assert len(train) + len(validation) == 200
    assert 5 <= len(validation) <= 40
    for n in range(200):
        (tmp_path / "in" / f"{n:03d}.txt").rename(tmp_path / "in" / f"{199 - n:03d}.new")
    assert len(train) == 200 - len(validation)


def test_equal_files_on_both_sides_are_counted_or_kept_together(prepared, tmp_path):
    for n in range(200):
        (tmp_path / "in" / f"{n:03d}.txt").write_text(f"text {n % 50:02d}\nsecond line\n")
    summary, display = prepared(validation_fraction=0.1)
    train, validation = map(documents_of, summary.folders)
    shared = sum(text in train for text in validation)
    assert summary.counts == {"shared_files": shared}
    assert shared > 5
    advice = "--hold_out_by=content keeps equal files on one side"
    assert display.said == [f"{shared} held-out files equal to files that are trained on; {advice}"]
    summary, _ = prepared("by content", validation_fraction=0.1, hold_out_by="content")
    train, validation = map(documents_of, summary.folders)
    assert not set(train) & set(validation)
    assert validation
    assert not summary.counts
    with pytest.raises(DataError, match='was started with hold_out_by = "content", not "name"'):
        prepared("by content", validation_fraction=0.1)
    plan = tmp_path / "out" / "preparation.json"
    plan.write_text(plan.read_text().replace('"hold_out_by": "name",', ""))  # of an earlier release
    assert prepared(validation_fraction=0.1)[0].seconds is None


@pytest.mark.parametrize("make", [small_tokenizers.byte, small_tokenizers.sentence_piece])
def test_of_a_single_file_the_end_is_held_out(make, prepared, small_tasks, tmp_path):
    text = "".join(f"line {n}\n" for n in range(1000))
    (tmp_path / "in" / "a.txt").write_text(text)
    summary, _ = prepared(validation_fraction=0.05, tokenizer=make(tmp_path / "tokenizer"))
    (train,), (validation,) = (documents_of(f) for f in summary.folders)
    assert train + validation == text
    assert validation.startswith("line ")
    assert 0.04 * len(text) < len(validation) <= 0.05 * len(text)


def test_a_file_of_one_line_leaves_the_held_out_split_empty(prepared, tmp_path):
    (tmp_path / "in" / "a.txt").write_text("only one line" * 20)
    train, validation = prepared(validation_fraction=0.05)[0].folders
    assert (train.num_documents, validation.num_documents) == (1, 0)


def test_memory_does_not_grow_with_the_text(prepared, tmp_path):
    line = ("word " * 19 + "word\n").encode()

    def peak(size: int) -> int:
        (tmp_path / "in" / "a.txt").write_bytes(line * (size // len(line)))
        child = run_in_a_process(lambda: prepared(f"out{size}"))
        _, status, usage = os.wait4(child, 0)
        assert status == 0
        return usage.ru_maxrss * 1024

    small, large = peak(4 * 2**20), peak(64 * 2**20)
    assert large - small < 16 * 2**20, (small, large)  # while the text has grown by 60 MiB


def test_the_queue_of_a_worker_is_bounded(prepared, small_tasks, tmp_path, monkeypatch):
    (tmp_path / "in" / "a.txt").write_text("some line\n" * 2000)
    made, taken, most = [0], [0], [0]

    def counted(*arguments, tasks=preparing.tasks):
        for task in tasks(*arguments):
            made[0] += 1
            most[0] = max(most[0], made[0] - taken[0])
            yield task

    def write(self, result, plain=preparing._Run._write):
        taken[0] += 1
        plain(self, result)

    monkeypatch.setattr(preparing, "tasks", counted)
    monkeypatch.setattr(preparing._Run, "_write", write)
    prepared(num_workers=2)
    assert made[0] > 15
    assert most[0] <= 2 * encoding._AHEAD + 1
