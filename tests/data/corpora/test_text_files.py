"""Text files as documents, and the held-out split."""

import logging

import pytest

from ml.data import DataError, Document, TextFiles
from ml.data.reading.hold_out import hold_out, num_shared


def names_of(corpus):
    return [document.name for document in corpus.documents()]


def test_the_default_corpus_is_the_standard_library_without_its_tests():
    documents = list(TextFiles().documents())
    names = [document.name for document in documents]
    assert names == sorted(names)
    assert {"os.py", "json/decoder.py", "asyncio/events.py"} <= set(names)
    assert not [name for name in names if {"test", "tests", "site-packages"} & set(name.split("/"))]
    assert sum(len(document.text) for document in documents) > 5_000_000


def test_a_folder_is_read_recursively_without_hidden_files(tmp_path):
    for name in ("b.txt", "a/z.txt", ".hidden.txt", ".git/x.txt", "a/notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert names_of(TextFiles(str(tmp_path))) == ["a/notes.md", "a/z.txt", "b.txt"]
    assert names_of(TextFiles(str(tmp_path), pattern="*.txt")) == ["a/z.txt", "b.txt"]


def test_files_and_folders_are_read_in_the_given_order(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/one.txt").write_text("1")
    (tmp_path / "two.txt").write_text("2")
    paths = [str(tmp_path / "two.txt"), str(tmp_path / "folder")]
    assert list(TextFiles(paths).documents()) == [Document("two.txt", "2"), Document("one.txt", "1")]


def test_an_empty_file_is_not_a_document(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    assert names_of(TextFiles(str(tmp_path))) == []


def test_invalid_utf8_is_replaced_and_its_place_reported(tmp_path, caplog):
    file = tmp_path / "latin.txt"
    file.write_bytes("schön, mais déjà".encode("latin-1"))
    with caplog.at_level(logging.WARNING):
        (document,) = TextFiles(str(file)).documents()
    assert document.text == "sch\ufffdn, mais d\ufffdj\ufffd"
    assert f"{file}: byte 3 (0xf6) is not UTF-8; 3 invalid sequences here replaced by U+FFFD" in caplog.text


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"abc\xffdef", {"invalid_utf8": "error"}, r"bad.txt: byte 3 \(0xff\) is not UTF-8"),
        (b"PNG\x00\x01", {}, "bad.txt is not text: byte 3 is zero"),
    ],
)
def test_content_that_is_not_text_stops_with_its_place(tmp_path, content, options, message):
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(TextFiles(str(tmp_path), **options).documents())


def test_a_path_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no such file or folder: .*nowhere.txt .TextFiles.paths"):
        list(TextFiles(str(tmp_path / "nowhere.txt")).documents())


def test_a_pattern_that_matches_nothing_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no file in .* matches '\*.json'"):
        list(TextFiles(str(tmp_path), pattern="*.json").documents())


@pytest.mark.parametrize("paths", ["", []])
def test_no_paths_are_refused(paths):
    with pytest.raises(ValueError, match="paths names nothing"):
        TextFiles(paths)


def many_documents(count=400):
    return [Document(f"folder/{index}.txt", f"text {index:04d}") for index in range(count)]


def test_the_held_out_split_has_about_the_fraction_and_is_disjoint():
    trained, held_out = hold_out(many_documents(), 0.1)
    assert 20 <= len(held_out) <= 60  # binomial(400, 0.1): 40 ± 3.3 standard deviations
    assert sorted(trained + held_out) == sorted(many_documents())


def test_the_split_of_a_document_does_not_depend_on_the_others():
    held_out = set(hold_out(many_documents(400), 0.1)[1])
    assert set(hold_out(many_documents(300), 0.1)[1]) == held_out & set(many_documents(300))


@pytest.mark.parametrize("count", [1, 2, 3])  # by its name, the second alone would be half of the text
def test_of_a_few_documents_the_ends_are_held_out(count):
    documents = [Document(f"{index}.txt", "0123456789" * 10) for index in range(count)]
    trained, held_out = hold_out(documents, 0.05)
    assert [document.text for document in trained] == [("0123456789" * 10)[:95]] * count
    assert [document.text for document in held_out] == ["56789"] * count


def test_equal_documents_are_counted_or_held_out_together():
    documents = [Document(f"{index}.txt", f"text {index % 100:04d}") for index in range(400)]
    trained, held_out = hold_out(documents, 0.1)
    assert num_shared(trained, held_out) == sum(one.text in {other.text for other in trained} for one in held_out) > 20
    trained, held_out = hold_out(documents, 0.1, "content")
    assert held_out
    assert num_shared(trained, held_out) == 0
    rows = [document._replace(is_row=True) for document in documents]
    assert [one.name for one in hold_out(rows, 0.1)[1]] == [one.name for one in held_out]


def test_fraction_zero_holds_out_nothing():
    assert hold_out(many_documents(3), 0.0) == (many_documents(3), [])
