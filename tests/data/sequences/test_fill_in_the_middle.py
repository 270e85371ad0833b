"""Rearranged documents, split at the sentinels and reassembled."""

import functools

import numpy as np
import pytest
import small_tokenizers
import torch

from ml.data import ByteTokenizer, DataError, FillInTheMiddle, PackedDocuments, TextData, TextFiles
from ml.data.sequences.streams import ArrayStream

PREFIX, SUFFIX, MIDDLE = 256, 257, 258
sentinels = {"prefix": PREFIX, "suffix": SUFFIX, "middle": MIDDLE}
RANDOM = np.random.default_rng(0)
TEXTS = [RANDOM.integers(1, 256, length).tolist() for length in [0, 1, 2, *RANDOM.integers(3, 60, 400).tolist()]]


def stream_of(texts, num_end_tokens=1):
    documents = [np.array([*text, *[0] * num_end_tokens], dtype=np.uint8) for text in texts]
    return ArrayStream.of(documents, num_end_tokens)


def turned(texts, seed=0, num_end_tokens=1, **options):
    return FillInTheMiddle(**sentinels, **options).apply(stream_of(texts, num_end_tokens), ByteTokenizer(), seed)


def documents_of(stream):
    whole = stream.read(0, stream.num_tokens).tolist()
    return [whole[a:b] for a, b in zip([0, *stream.ends[:-1].tolist()], stream.ends.tolist(), strict=True)]


def read_back(document):
    """Returns the order, the original text and its parts; PSM with an empty prefix reads as SPM and is equivalent."""
    if MIDDLE not in document:
        return "as it is", document, ()
    assert document[0] == PREFIX
    suffix, middle = document.index(SUFFIX), document.index(MIDDLE)
    if suffix == 1:
        return "SPM", document[middle + 1 :] + document[2:middle], ([], document[middle + 1 :], document[2:middle])
    parts = document[1:suffix], document[middle + 1 :], document[suffix + 1 : middle]
    return "PSM", [*parts[0], *parts[1], *parts[2]], parts


@pytest.mark.parametrize("num_end_tokens", [0, 1, 2])
def test_every_document_is_complete_in_one_of_the_three_orders(num_end_tokens):
    ending = [0] * num_end_tokens
    orders = []
    for text, document in zip(TEXTS, documents_of(turned(TEXTS, num_end_tokens=num_end_tokens)), strict=True):
        assert document[len(document) - num_end_tokens :] == ending
        order, back, _ = read_back(document[: len(document) - num_end_tokens])
        assert back == text
        orders.append(order)
    # Binomial with n = 400: four standard deviations are 40 of the rearranged documents, 35 of half of them.
    assert abs(orders.count("as it is") - 200) < 40
    assert abs(orders.count("SPM") - orders.count("PSM")) < 57


def test_cuts_are_uniform():
    texts = [[7] * 9] * 3000
    parts = [read_back(document[:-1])[2] for document in documents_of(turned(texts, rate=1.0, spm_rate=0.0))]
    pairs = np.bincount([10 * len(prefix) + len(prefix) + len(middle) for prefix, middle, _ in parts], minlength=100)
    # Two draws among ten positions, sorted: equal ones have probability 1/100, others 2/100.
    expected = np.array([(1 if a == b else 2) * 30.0 * (a <= b) for a in range(10) for b in range(10)])
    possible = expected > 0
    assert not pairs[~possible].any()
    # chi-squared with 54 degrees of freedom, 99.9% below 91.9
    assert ((pairs - expected)[possible] ** 2 / expected[possible]).sum() < 91.9


@pytest.mark.parametrize(("rate", "spm_rate", "order"), [(0.0, 0.5, "as it is"), (1.0, 0.0, "PSM"), (1.0, 1.0, "SPM")])
def test_rates_of_zero_and_one(rate, spm_rate, order):
    documents = documents_of(turned([[7] * 5000] * 20, rate=rate, spm_rate=spm_rate))
    assert {read_back(document[:-1])[0] for document in documents} == {order}


def test_any_range_reads_as_part_of_the_whole():
    stream = turned(TEXTS[:20])
    whole = stream.read(0, stream.num_tokens).tolist()
    for start in range(0, len(whole), 7):
        for stop in range(start, min(start + 90, len(whole) + 1)):
            assert stream.read(start, stop).tolist() == whole[start:stop]


def test_the_rearrangement_depends_on_the_seed_and_the_document_index_only():
    assert documents_of(turned(TEXTS)) == documents_of(turned(TEXTS))
    assert documents_of(turned(TEXTS)) != documents_of(turned(TEXTS, seed=1))
    assert documents_of(turned(TEXTS[:50])) == documents_of(turned(TEXTS))[:50]


@pytest.mark.parametrize("options", [{}, {"sampling": PackedDocuments}, {"separate_documents": True}])
def test_text_is_rearranged_before_it_is_cut_and_held_out_text_is_not(tmp_path, options):
    for number in range(60):
        (tmp_path / f"{number:02d}.txt").write_text(f"{number} " * (5 + number % 7))
    corpus = functools.partial(TextFiles, str(tmp_path))
    fill = functools.partial(FillInTheMiddle, **sentinels)
    data = TextData(corpus=corpus, validation_fraction=0.2, fill_in_the_middle=fill, **options)
    assert data.vocab_size == 259
    dataset, plain = data.open(16, 0), TextData(corpus=corpus, validation_fraction=0.2, **options).open(16, 0)
    drawn = dataset.batch(0, 200).tokens
    assert all((drawn == token).any() for token in sentinels.values())
    assert (plain.batch(0, 200).tokens < 256).all()
    for batch, expected in zip(dataset.validation_batches(8), plain.validation_batches(8), strict=True):
        assert torch.equal(batch.tokens, expected.tokens)
    assert dataset.validation_bytes() == plain.validation_bytes()


def test_sentinels_may_be_special_tokens_of_the_tokenizer():
    class Special(ByteTokenizer):
        def special_token(self, text):
            return {"<pre>": 1, "<suf>": 2, "<mid>": 3}.get(text)

    def build(prefix):
        return FillInTheMiddle(rate=1.0, spm_rate=0.0, prefix=prefix, suffix="<suf>", middle="<mid>")

    stream = build("<pre>").apply(stream_of([[9, 9, 9]]), Special(), 0)
    assert sorted(stream.read(0, 7).tolist()) == [0, 1, 2, 3, 9, 9, 9]
    with pytest.raises(DataError, match=r"no special token '<fim>' \(FillInTheMiddle.prefix\)"):
        build("<fim>").apply(stream_of([[9]]), Special(), 0)
    with pytest.raises(DataError, match="three different tokens"):
        build(2).apply(stream_of([[9]]), Special(), 0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prefix": -1}, "prefix must not be negative"),
        ({"middle": PREFIX}, "middle must differ from the other sentinels"),
        ({"rate": 1.5}, "rate must be a probability"),
        ({"spm_rate": -0.1}, "spm_rate must be a probability"),
    ],
)
def test_options_out_of_range_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        FillInTheMiddle(**{**sentinels, **changed})


@pytest.mark.parametrize("build", [small_tokenizers.hugging_face, small_tokenizers.tiktoken])
def test_special_tokens_are_found_by_their_text(build, tmp_path):
    tokenizer = build(tmp_path)
    token = tokenizer.special_token(small_tokenizers.END)
    assert tokenizer.decode(np.array([token])) == small_tokenizers.END
    assert token not in tokenizer.encode(small_tokenizers.END)
    assert tokenizer.special_token("no such token") is None
