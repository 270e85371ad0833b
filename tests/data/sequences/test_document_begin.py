"""Begin of documents: every real token is predicted, the first one from the begin token."""

import functools

import numpy as np
import pytest

from ml.data import ByteTokenizer, DataError, FillInTheMiddle, PackedDocuments, RandomWindows, ShuffledEpochs, TextData
from ml.data.reading.documents import Document
from ml.data.sequences.document_begin import Begin, begun
from ml.data.sequences.document_separator import Separator
from ml.data.sequences.streams import ArrayStream, JoinedStream

RANDOM = np.random.default_rng(1)
IGNORED = -100


class Beginning(ByteTokenizer):
    """Bytes with a begin-of-document token."""

    vocab_size = 300
    begin_of_document = 299

    def special_token(self, text):
        return {"<begin>": 299, "<other>": 298}.get(text)


class Texts:
    """Documents in memory."""

    def __init__(self, texts):
        self.texts = texts

    def documents(self):
        return iter([Document(str(number), text) for number, text in enumerate(self.texts)])


def opened(texts, length, held_out=0.0, **options):
    corpus = functools.partial(Texts, texts)
    return TextData(corpus=corpus, validation_fraction=held_out, **options).open(length, seed=0)


def pairs_of(dataset, batches=None):
    """Returns (input, target) of every target of an epoch, or of the batches."""
    batches = [dataset.batch(0, dataset.num_sequences)] if batches is None else batches
    pairs = [np.stack((batch.tokens.numpy().ravel(), batch.targets.numpy().ravel())) for batch in batches]
    pairs = np.concatenate(pairs, axis=1)
    return pairs[:, pairs[1] != IGNORED].T.tolist()


WORDS = [f"word {'x' * int(size)}" for size in RANDOM.integers(1, 40, 200)]


@pytest.mark.parametrize("sampling", [ShuffledEpochs, PackedDocuments])
@pytest.mark.parametrize("separate", [None, True])
def test_the_word_that_begins_every_document_is_what_follows_the_separator(sampling, separate):
    dataset = opened(WORDS, 64, sampling=sampling, separate_documents=separate)
    following = [target for token, target in pairs_of(dataset) if token == 0]
    assert len(following) >= 0.97 * len(WORDS)  # windows skip a remainder
    assert set(following) == {ord("w")}


@pytest.mark.parametrize("tokenizer", [ByteTokenizer, Beginning])
@pytest.mark.parametrize("length", [7, 64])
@pytest.mark.parametrize("fim", [False, True])
def test_every_token_of_packed_documents_is_a_target_once(tokenizer, length, fim):
    texts = [*WORDS[:30], "y" * 200, "z"]
    fill = functools.partial(FillInTheMiddle, rate=1.0, prefix=1, suffix=2, middle=3) if fim else None
    options = {"tokenizer": tokenizer, "fill_in_the_middle": fill, "sampling": PackedDocuments}
    dataset = opened(texts, length, **options)
    targets = sorted(target for _, target in pairs_of(dataset))
    sentinels = b"\1\2\3" * len(texts) if fim else b""
    assert targets == sorted(("\0".join(texts) + "\0").encode() + sentinels)
    assert dataset.num_train_tokens == len(targets)
    begin = {ByteTokenizer: 0, Beginning: 299}[tokenizer]
    first = sorted(target for token, target in pairs_of(dataset) if token == begin)
    assert first == sorted([1] * len(texts) if fim else [ord(text[0]) for text in texts])


@pytest.mark.parametrize("separate", [True, False])
def test_held_out_documents_begin_like_those_of_training(separate):
    options = {"sampling": PackedDocuments, "separate_documents": separate, "tokenizer": Beginning}
    dataset = opened(WORDS, 32, 1.0, **options)
    pairs = pairs_of(dataset, list(dataset.validation_batches(3)))
    text = "\0".join(WORDS) + "\0"
    assert dataset.num_validation_tokens == dataset.validation_bytes() == len(text)
    assert sorted(target for _, target in pairs) == sorted(text.encode())
    assert sum(token == 299 for token, _ in pairs) == len(WORDS)


@pytest.mark.parametrize("sampling", [ShuffledEpochs, RandomWindows])
def test_windows_have_the_begin_token_of_the_tokenizer_and_do_not_predict_it(sampling):
    dataset = opened(["abc", "de"], 8, tokenizer=Beginning, sampling=sampling)
    begun_text = [299, *b"abc\0", 299, *b"de\0"]
    for row in range(5):
        batch = dataset.batch(row, 1)
        tokens, targets = batch.tokens[0].tolist(), batch.targets[0].tolist()
        assert tokens == begun_text[:8]
        assert targets == [token if token != 299 else IGNORED for token in begun_text[1:9]]


def test_windows_that_do_not_separate_need_no_second_separator():
    dataset = opened(["abc", "de"], 6)
    assert dataset.batch(0, 1).tokens[0].tolist() == [*b"abc\0de"]
    assert opened(["abc", "de"], 6, begin_token="\0").sha256 == dataset.sha256


def random_stream(num_documents, dtype):
    lengths = RANDOM.integers(1, 6, num_documents)
    return ArrayStream(RANDOM.integers(1, 200, lengths.sum()).astype(dtype), np.cumsum(lengths))


@pytest.mark.parametrize("parts", [[0], [1], [9], [3, 0, 4]])
@pytest.mark.parametrize("token", [0, 50_000])
def test_a_begun_stream_is_the_documents_with_a_token_before_each(parts, token):
    made = [random_stream(size, np.uint8) for size in parts]
    stream = JoinedStream(made)
    expected, ends = [], []
    for document in np.split(stream.read(0, stream.num_tokens), stream.ends)[:-1]:
        expected += [token, *document.tolist()]
        ends.append(len(expected))
    found = begun(stream, Begin(np.array([token]), True))
    assert found.num_tokens == len(expected)
    assert found.ends.tolist() == ends
    is_begin = np.isin(np.arange(len(expected)), [0, *ends])
    for start in range(len(expected) + 1):
        for stop in range(start, len(expected) + 1):
            assert found.read(start, stop).tolist() == expected[start:stop]
            predicted = found.is_predicted(start, stop)
            assert (~is_begin[start:stop]).all() if predicted is None else (predicted == ~is_begin[start:stop]).all()


CHOICES = [  # tokenizer, separator, begin_token, separated: the token that is inserted, and those that start a text
    (ByteTokenizer, None, None, True, 0, [0]),
    (ByteTokenizer, None, None, False, None, [0]),
    (ByteTokenizer, "\n\n", None, True, 10, [10]),
    (ByteTokenizer, "\n\n", None, False, None, [10, 10]),
    (ByteTokenizer, "", None, True, None, []),
    (ByteTokenizer, None, "", True, None, [0]),
    (ByteTokenizer, None, "#", False, 35, [35]),
    (Beginning, None, None, True, 299, [299]),
    (Beginning, None, None, False, 299, [299]),
    (Beginning, "", None, False, 299, [299]),
    (Beginning, None, "<other>", True, 298, [298]),
    (Beginning, None, "", True, None, [0]),
]


@pytest.mark.parametrize(("tokenizer", "separator", "text", "separates", "inserted", "start"), CHOICES)
def test_the_begin_token_is_that_of_the_option_the_tokenizer_or_the_separator(
    tokenizer, separator, text, separates, inserted, start
):
    begin = Begin.of(tokenizer(), Separator.of(tokenizer(), separator), text, separates)
    assert begin.inserted == inserted
    assert begin.tokens.tolist() == start
    expected = [97, 98] if inserted is None else [inserted, 97, 98]
    assert begin.before(np.array([97, 98])).tolist() == expected
    assert begin.before(begin.before(np.array([97, 98]))).tolist() == expected  # never twice


def test_a_begin_token_of_several_tokens_is_refused():
    with pytest.raises(DataError, match="begin_token = 'ab' must be one token, not 2"):
        opened(["abc"], 2, begin_token="ab")
