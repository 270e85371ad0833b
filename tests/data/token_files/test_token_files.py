"""Token files: reading against the written array, and detection of damaged files."""

import json
import os
import shutil
import threading

import numpy as np
import pytest
import small_tokenizers

from ml.data import ByteTokenizer, DataError
from ml.data.token_files.reading import TokenFolder, data_sha256, find_token_folders, smallest_dtype
from ml.data.token_files.writing import TokenWriter
from ml.data.tokenizers import Tokenizer


class Numbers(ByteTokenizer):
    """A tokenizer with a vocabulary of any size."""

    def __init__(self, vocab_size):
        self.vocab_size = vocab_size


def write(folder, documents, tokenizer=None, shard_tokens=100):
    """Writes documents, arrays of tokens, in small pieces; returns the stream."""
    writer = TokenWriter(folder, tokenizer or ByteTokenizer(), shard_tokens)
    for first in range(0, len(documents), 3):
        some = documents[first : first + 3]
        writer.append(np.concatenate(some), np.cumsum([len(d) for d in some]), sum(len(d) for d in some))
    writer.finish({"sources": 1})
    return np.concatenate(documents) if documents else np.zeros(0, int)


@pytest.fixture
def documents():
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, generator.integers(1, 70)).astype(np.uint8) for _ in range(40)]


@pytest.mark.parametrize("shard_tokens", [13, 100, 10_000])
@pytest.mark.parametrize(("vocab_size", "dtype"), [(256, "|u1"), (257, "<u2"), (65_536, "<u2"), (65_537, "<u4")])
def test_reading_returns_the_written_tokens(tmp_path, documents, shard_tokens, vocab_size, dtype, monkeypatch):
    monkeypatch.setattr("ml.data.token_files.writing.save_tokenizer", lambda *_: (tmp_path / "t/tokenizer").mkdir())
    scale = (vocab_size - 1) // 255
    documents = [document.astype(np.int64) * scale for document in documents]
    stream = write(tmp_path / "t", documents, Numbers(vocab_size), shard_tokens)
    folder = TokenFolder(tmp_path / "t")
    assert folder.dtype.str == dtype
    assert (folder.num_tokens, folder.num_documents, folder.vocab_size) == (len(stream), 40, vocab_size)
    assert np.array_equal(folder.read(0, len(stream)), stream)
    assert np.array_equal(folder.document_ends, np.cumsum([len(document) for document in documents]))
    for length in (0, 1, 8, 250):
        starts = np.random.default_rng(length).integers(0, len(stream) - length + 1, 20)
        expected = [stream[start : start + length] for start in starts]
        assert np.array_equal(folder.gather(starts, length), np.array(expected).reshape(20, length))
    assert sorted(file.name for file in (tmp_path / "t").glob("*.tokens")) == [
        shard["file"] for shard in folder.manifest["shards"]
    ]


def test_positions_outside_the_stream_are_refused(tmp_path, documents):
    stream = write(tmp_path, documents)
    folder = TokenFolder(tmp_path)
    for start, stop in ((-1, 3), (len(stream), len(stream) + 1), (0, len(stream) + 1), (5, 4)):
        with pytest.raises(IndexError):
            folder.read(start, stop)


def test_the_smallest_type_holds_the_vocabulary():
    sizes = (1, 256, 257, 65_536, 65_537, 2**32)
    assert [smallest_dtype(size) for size in sizes] == ["uint8", "uint8", "uint16", "uint16", "uint32", "uint32"]
    with pytest.raises(DataError, match="does not fit in 32 bits"):
        smallest_dtype(2**32 + 1)


@pytest.mark.parametrize("shards", [1, 2])
def test_files_above_2_and_4_gib_are_read_where_they_should_be(tmp_path, shards):
    """Sparse files: only the written ranges use disk space."""
    gib = 2**30
    write(tmp_path, [np.ones(3, np.uint8)], shard_tokens=2)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    num_tokens = 5 * gib // shards  # uint8
    manifest["shards"] = [{"file": f"{n:05d}.tokens", "num_tokens": num_tokens, "sha256": ""} for n in range(shards)]
    manifest |= {"num_tokens": 5 * gib, "num_documents": 0}
    manifest["sha256"] = data_sha256(manifest)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    os.truncate(tmp_path / "documents.ends", 0)
    places = [0, 2 * gib - 4, 2 * gib + 100, 5 * gib // 2 - 4, 4 * gib - 4, 5 * gib - 8]
    for number in range(shards):
        with (tmp_path / f"{number:05d}.tokens").open("wb") as file:
            file.truncate(num_tokens)
            for place in places:
                for offset in range(8):
                    shard, within = divmod(place + offset, num_tokens)
                    if shard == number:
                        file.seek(within)
                        file.write(bytes([place // gib * 10 + offset + 1]))
    folder = TokenFolder(tmp_path)
    for place, row in zip(places, folder.gather(np.array(places), 8), strict=True):
        assert row.tolist() == [place // gib * 10 + offset + 1 for offset in range(8)]


def test_what_the_system_reads_in_parts_is_read_whole(tmp_path, documents, monkeypatch):
    """Short reads, which happen above 2 GiB and on signals."""
    stream = write(tmp_path, documents)
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, place: whole(file, [buffers[0][:7]], place))
    assert np.array_equal(TokenFolder(tmp_path).read(0, len(stream)), stream)


def test_threads_can_read_in_parallel(tmp_path, documents):
    stream = write(tmp_path, documents)
    folder, wrong = TokenFolder(tmp_path), []

    def read(seed):
        for start in np.random.default_rng(seed).integers(0, len(stream) - 300, 200):
            if not np.array_equal(folder.read(int(start), int(start) + 300), stream[start : start + 300]):
                wrong.append(start)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("file", ["00001.tokens", "documents.ends"])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_size_is_refused_with_both_sizes(tmp_path, documents, file, change):
    write(tmp_path, documents)
    size = (tmp_path / file).stat().st_size
    os.truncate(tmp_path / file, size + change)
    with pytest.raises(DataError, match=f"{file} has {size + change:,} bytes, expected {size:,}"):
        TokenFolder(tmp_path)


@pytest.mark.parametrize("file", ["00001.tokens", "documents.ends"])
def test_a_missing_file_is_named(tmp_path, documents, file):
    write(tmp_path, documents)
    (tmp_path / file).unlink()
    with pytest.raises(DataError, match=f"cannot read .*{file}: No such file"):
        TokenFolder(tmp_path)


def test_a_file_truncated_while_being_read_is_an_error_and_not_a_crash(tmp_path, documents):
    stream = write(tmp_path, documents, shard_tokens=500)
    folder = TokenFolder(tmp_path)
    assert np.array_equal(folder.read(520, 600), stream[520:600])
    os.truncate(tmp_path / "00001.tokens", 50)
    with pytest.raises(DataError, match=r"00001.tokens has 50 bytes, expected 500: it was truncated"):
        folder.read(520, 600)
    assert np.array_equal(folder.read(0, 100), stream[:100])


def test_a_deleted_file_is_still_read_if_open_and_otherwise_named(tmp_path, documents):
    stream = write(tmp_path, documents, shard_tokens=500)
    folder = TokenFolder(tmp_path)
    folder.read(0, 10)
    for file in tmp_path.glob("*.tokens"):
        file.unlink()
    assert np.array_equal(folder.read(100, 200), stream[100:200])
    with pytest.raises(DataError, match=r"cannot read .*00001\.tokens: No such file"):
        folder.read(600, 700)


def test_tokens_out_of_range_are_found_on_reading_and_on_verifying(tmp_path, documents):
    tokenizer = small_tokenizers.hugging_face(tmp_path / "tokenizer")
    write(tmp_path / "t", documents, tokenizer)
    with (tmp_path / "t" / "00002.tokens").open("r+b") as file:
        file.seek(2 * 34)
        file.write((600).to_bytes(2, "little"))
    folder = TokenFolder(tmp_path / "t")
    folder.read(0, 234)
    message = r"00002.tokens: token 34 is 600, but the vocabulary of .*manifest.json has 600"
    with pytest.raises(DataError, match=message):
        folder.gather(np.array([3, 190]), 50)
    with pytest.raises(DataError, match=r"00002.tokens has changed: its SHA-256 is .*\n.*has token 600"):
        folder.verify()


@pytest.mark.parametrize("file", ["00000.tokens", "00003.tokens", "documents.ends", "tokenizer/ranks.tiktoken"])
def test_verifying_finds_a_flipped_bit(tmp_path, documents, file):
    tokenizer: Tokenizer = small_tokenizers.tiktoken(tmp_path / "ranks")
    write(tmp_path / "t", documents, tokenizer)
    TokenFolder(tmp_path / "t").verify()
    content = bytearray((tmp_path / "t" / file).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "t" / file).write_bytes(content)
    with pytest.raises(DataError, match=f"{file} has changed"):
        TokenFolder(tmp_path / "t").verify()


def test_unsorted_ends_are_refused(tmp_path, documents):
    write(tmp_path, documents)
    ends = np.fromfile(tmp_path / "documents.ends", "<i8")
    ends[3] = ends[2]
    ends.tofile(tmp_path / "documents.ends")
    with pytest.raises(DataError, match=r"documents.ends is damaged"):
        _ = TokenFolder(tmp_path).document_ends


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "has the format 'other', expected 'juniper tokens 1'"),
        ({"vocab_size": 300}, "is damaged or was edited"),
        ({"num_tokens": 3}, "is damaged or was edited"),
        ({"shards": None}, "is damaged: TypeError"),
    ],
)
def test_an_edited_manifest_is_refused(tmp_path, documents, change, message):
    write(tmp_path, documents)
    manifest = json.loads((tmp_path / "manifest.json").read_text()) | change
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=message):
        TokenFolder(tmp_path)


def test_a_manifest_that_is_not_json_is_refused(tmp_path, documents):
    write(tmp_path, documents)
    os.truncate(tmp_path / "manifest.json", 100)
    with pytest.raises(DataError, match=r"manifest.json is damaged: JSONDecodeError"):
        TokenFolder(tmp_path)


def test_the_hash_depends_on_the_data_only(tmp_path, documents):
    write(tmp_path / "one", documents)
    write(tmp_path / "again", documents)
    write(tmp_path / "other", [*documents[:-1], documents[-1] ^ 1])
    write(tmp_path / "other ends", [np.concatenate(documents[:2]), *documents[2:]])
    shutil.move(tmp_path / "again", tmp_path / "elsewhere")
    hashes = {name: TokenFolder(tmp_path / name).sha256 for name in ("one", "elsewhere", "other", "other ends")}
    assert hashes["one"] == hashes["elsewhere"]
    assert len(set(hashes.values())) == 3


def test_the_tokenizer_is_in_the_folder(tmp_path):
    tokenizer = small_tokenizers.hugging_face(tmp_path / "gone")
    tokens = tokenizer.encode("def decode(self):")
    write(tmp_path / "t", [tokens], tokenizer)
    shutil.rmtree(tmp_path / "gone")
    folder = TokenFolder(tmp_path / "t")
    assert folder.tokenizer.decode(folder.read(0, len(tokens))) == "def decode(self):"
    assert folder.end_of_document == folder.tokenizer.end_of_document


def test_an_empty_folder_of_tokens_is_valid(tmp_path):
    write(tmp_path, [])
    folder = TokenFolder(tmp_path)
    assert (folder.num_tokens, folder.num_documents, len(folder.document_ends)) == (0, 0, 0)
    assert folder.read(0, 0).shape == (0,)
    folder.verify()


def test_folders_are_found(tmp_path, documents):
    write(tmp_path / "whole", documents)
    assert find_token_folders(tmp_path / "whole") == (tmp_path / "whole", None)
    write(tmp_path / "both/train", documents)
    assert find_token_folders(tmp_path / "both") == (tmp_path / "both/train", None)
    write(tmp_path / "both/validation", documents)
    assert find_token_folders(tmp_path / "both") == (tmp_path / "both/train", tmp_path / "both/validation")
    with pytest.raises(DataError, match="no such folder of token files"):
        find_token_folders(tmp_path / "nowhere")
    with pytest.raises(DataError, match="has no token files"):
        find_token_folders(tmp_path)
    (tmp_path / "preparation.json").touch()
    with pytest.raises(DataError, match=r"is not complete.*run it again"):
        find_token_folders(tmp_path)


@pytest.mark.parametrize("shard_tokens", [40, 10_000])
def test_a_writer_resumes_from_the_last_commit(tmp_path, documents, shard_tokens):
    write(tmp_path / "whole", documents, shard_tokens=shard_tokens)
    folder = tmp_path / "stopped"
    position = None
    for begin in range(0, 40, 10):
        writer = TokenWriter(folder, ByteTokenizer(), shard_tokens, position)
        for document in documents[begin : begin + 10]:
            writer.append(document, np.array([len(document)]), len(document))
        position = json.loads(json.dumps(writer.commit()))
        for document in documents[:7]:  # written but not committed
            writer.append(document ^ 1, np.array([len(document)]), len(document))
        writer.close()
    writer = TokenWriter(folder, ByteTokenizer(), shard_tokens, position)
    writer.finish({"sources": 1})
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_writer_does_not_resume_if_something_is_missing(tmp_path, documents):
    writer = TokenWriter(tmp_path, ByteTokenizer(), 10_000)
    writer.append(documents[0], np.array([len(documents[0])]), 1)
    position = writer.commit()
    writer.close()
    os.truncate(tmp_path / "00000.tokens", 1)
    with pytest.raises(OSError, match="has 1 bytes instead of"):
        TokenWriter(tmp_path, ByteTokenizer(), 10_000, position)


def contents(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
