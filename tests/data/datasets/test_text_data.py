"""Batches of text documents."""

import functools

import numpy as np
import pytest
import torch

from ml.data import Batch, ByteTokenizer, DataError, RandomWindows, TextData, TextFiles


@pytest.fixture
def data(tmp_path):
    """Builds data over files with the given texts."""

    def build(texts, **options):
        for index, text in enumerate(texts):
            (tmp_path / f"{index:03d}.txt").write_text(text)
        return TextData(corpus=functools.partial(TextFiles, str(tmp_path)), **options)

    return build


def test_bytes_are_tokens_and_are_decoded_to_the_same_text():
    text = "schön 漢字\n"
    tokens = ByteTokenizer().encode(text)
    assert tokens.dtype == np.uint8
    assert bytes(tokens.tolist()) == text.encode()
    assert ByteTokenizer().decode(tokens) == text
    assert ByteTokenizer().decode(tokens[:-2]) == "schön 漢\ufffd"
    assert ByteTokenizer().num_bytes(tokens) == 14


def test_documents_are_concatenated_with_a_separator_after_each(data):
    dataset = data(["one", "two"], separator="|", validation_fraction=0.0).open(sequence_length=4, seed=0)
    assert bytes(dataset.train.tokens) == b"one|two|"


def test_a_batch_has_windows_of_the_text_with_the_next_tokens_as_targets(data):
    text = "".join(chr(33 + index) for index in range(90))
    dataset = data([text], validation_fraction=0.0).open(sequence_length=8, seed=3)
    batch = dataset.batch(first=5, size=4)
    assert batch.tokens.shape == batch.targets.shape == (4, 8)
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert batch.num_targets == 32
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        assert tokens[0] % 8 == 33 % 8
        assert bytes([*tokens, targets[-1]]) in (text + "\0").encode()
        assert targets == [token + 1 for token in tokens] or targets[-1] == 0


@pytest.mark.parametrize("sampling", [None, RandomWindows])
def test_a_batch_is_a_pure_function_of_data_seed_and_index(data, sampling):
    options = {} if sampling is None else {"sampling": sampling}
    build = data(["some text to learn from " * 50], **options).open
    first, second, other_seed = build(16, 1), build(16, 1), build(16, 2)
    expected = [first.batch(4 * step, 4).tokens for step in range(30)]
    for step in (29, 3, 17, 3):
        assert torch.equal(second.batch(4 * step, 4).tokens, expected[step])
    assert not all(torch.equal(other_seed.batch(4 * step, 4).tokens, expected[step]) for step in range(30))
    assert torch.equal(first.batch(0, 8).tokens, torch.cat(expected[:2]))


@pytest.mark.parametrize("num_tokens", [None, 1, 7, 8, 9, 64, 65, 10_000])
@pytest.mark.parametrize("size", [1, 3, 100])
def test_validation_predicts_each_token_once_in_order(data, num_tokens, size):
    dataset = data(["x" * 900 + "".join(chr(33 + index % 90) for index in range(100))], validation_fraction=0.1).open(
        8, 0
    )
    batches = list(dataset.validation_batches(size, num_tokens))
    targets = torch.cat([batch.targets.flatten() for batch in batches])
    tokens = torch.cat([batch.tokens.flatten() for batch in batches])
    counted = targets != -100
    expected = dataset.validation.tokens[: (num_tokens or 10_000) + 1].tolist()
    assert targets[counted].tolist() == expected[1:]
    assert tokens[counted].tolist() == expected[:-1]
    assert sum(batch.num_targets for batch in batches) == len(expected) - 1
    assert dataset.validation_bytes(num_tokens) == len(expected) - 1
    assert all(batch.tokens.shape[0] <= size and batch.tokens.shape[1] == 8 for batch in batches)


def test_the_hash_depends_on_the_data_and_not_on_the_path(data, tmp_path):
    original = data(["some text"] * 3).open(2, 0).sha256
    assert data(["some text"] * 3).open(4, 9).sha256 == original
    for changed in (data(["some texT"] * 3), data(["some text"] * 3, separator=""), data(["a", "b", "c"])):
        assert changed.open(2, 0).sha256 != original


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("12345678", "training text has 9 tokens, but one sequence takes 10"),
        ("", "training text has 0 tokens"),
    ],
)
def test_a_corpus_shorter_than_a_sequence_is_refused(data, text, message):
    with pytest.raises(DataError, match=message):
        data([text], validation_fraction=0.0).open(sequence_length=9, seed=0)


def test_a_fraction_outside_of_its_range_is_refused():
    with pytest.raises(ValueError, match="validation_fraction must be in"):
        TextData(validation_fraction=1.01)


def test_the_default_corpus_holds_out_whole_files():
    dataset = TextData().open(sequence_length=256, seed=0)
    assert 0.01 < dataset.num_validation_tokens / (dataset.num_train_tokens + dataset.num_validation_tokens) < 0.2
    assert dataset.train.tokens.dtype == np.uint8
    assert dataset.validation.tokens[-1] == 0


def test_a_batch_splits_into_micro_batches_with_their_valid_targets():

    targets = np.array([[1, 2], [-100, 3], [-100, -100]])
    pieces = Batch.of(np.zeros((3, 2)), targets).split(2)
    assert [piece.num_targets for piece in pieces] == [3, 0]
    assert torch.equal(torch.cat([piece.targets for piece in pieces]), torch.from_numpy(targets))


def test_the_hash_depends_on_document_boundaries(data):
    def sha256(*texts):
        return data(list(texts), separator="", separate_documents=True, validation_fraction=0.0).open(4, 0).sha256

    assert sha256("abcd", "efgh") != sha256("ab", "cdefgh")


def test_separated_documents_neither_attend_to_nor_predict_each_other(data):
    texts = ["one", "three", "x", "fourteen"]
    dataset = data(texts, separator="|", separate_documents=True, validation_fraction=0.0).open(5, seed=0)
    stream = "|one||three||x||fourteen|"  # each begins with the separator
    for row in range(4):
        batch = dataset.batch(row, 1)
        tokens, targets, documents = (tensor[0].tolist() for tensor in (batch.tokens, batch.targets, batch.documents))
        start = stream.index(bytes(tokens).decode())
        for place, (target, document) in enumerate(zip(targets, documents, strict=True), start):
            assert document == (stream[: place + 1].count("|") - 1) // 2
            is_last = stream[: place + 1].count("|") % 2 == 0
            assert target == (-100 if is_last else ord(stream[place + 1]))


def test_bits_per_byte_include_the_starts_of_documents(data):
    dataset = data(["abcdefgh"] * 40, separator="|", separate_documents=True, validation_fraction=0.3).open(4, 0)
    batches = list(dataset.validation_batches(2))
    assert sum(batch.num_targets for batch in batches) == dataset.validation_bytes()
    assert dataset.validation_bytes() == dataset.num_validation_tokens
