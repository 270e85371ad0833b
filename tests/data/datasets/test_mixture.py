"""Mixtures and concatenations, compared with a replay from the first sequence."""

import collections
import functools

import numpy as np
import pytest
import torch
from prepared import write_folder

from ml.data import Concatenation, DataError, Mixture, RandomWindows, TextData, TextFiles, TokenFiles
from ml.data.datasets.mixture import draw_in_stretches, draw_parts, splits, stretches
from ml.data.tokenizers import ByteTokenizer

WEIGHTS = {
    "one": [1.0],
    "equal": [1.0, 1.0],
    "three": [0.5, 0.3, 0.2],
    "rare": [1000.0, 1.0, 3.0],
    "rare first": [1.0, 1000.0],
    "many": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
}


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_index_in_a_dataset_is_the_count_of_its_earlier_sequences(weights, seed):
    part_of, index_in_part = draw_parts(splits(weights, seed), np.arange(5000))
    seen = collections.Counter()
    for part, number in zip(part_of.tolist(), index_in_part.tolist(), strict=True):
        assert number == seen[part]
        seen[part] += 1


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_every_prefix_has_the_share_of_each_dataset(weights):
    part_of, _ = draw_parts(splits(weights, 3), np.arange(20_000))
    for part, weight in enumerate(weights):
        counts = np.cumsum(part_of == part)
        expected = np.arange(1, 20_001) * weight / sum(weights)
        assert np.abs(counts - expected).max() <= len(weights)


@pytest.mark.parametrize("seed", range(3))
def test_every_part_continues_where_earlier_weights_left_it(seed):
    """Against a count by hand: the numbers of each part are 0, 1, 2, ... over all stretches."""
    weights, ends = [[1.0, 2.0, 4.0], [5.0, 1.0, 1.0], [1.0, 1.0, 9.0]], [7, 40, 100]
    seen, begin = collections.Counter(), 0
    expected = []
    for end, of_parts in zip(ends, weights, strict=True):
        for part in draw_parts(splits(of_parts, seed), np.arange(end - begin))[0]:
            expected.append((int(part), seen[int(part)]))
            seen[int(part)] += 1
        begin = end
    made = stretches(weights, ends[:-1], seed)
    found = draw_in_stretches(made, np.arange(100))
    assert list(zip(*(each.tolist() for each in found), strict=True)) == expected
    one_by_one = [draw_in_stretches(made, np.array([index])) for index in range(100)]
    assert [(int(part[0]), int(number[0])) for part, number in one_by_one] == expected


def test_large_indices_are_found_without_a_replay():
    made = splits([0.5, 0.3, 0.2], 0)
    for start in (2**32 - 500, 2**40 + 12345, 2**61):
        numbers = np.arange(start, start + 1000)
        part_of, index_in_part = draw_parts(made, numbers)
        for part, share in enumerate([0.5, 0.3, 0.2]):
            here = index_in_part[part_of == part]
            assert np.array_equal(here, here[0] + np.arange(len(here)))
            assert abs(len(here) - 1000 * share) <= 3
            assert here[0] / start == pytest.approx(share, rel=1e-8)  # shares are rounded to 32 bits


def test_the_seed_changes_the_order_of_the_datasets():
    one, other = (draw_parts(splits([1.0, 3.0], seed), np.arange(50))[0].tolist() for seed in (0, 1))
    assert one != other


@pytest.fixture
def text(tmp_path):
    """Returns a constructor of text data with only `letter`, so that a token identifies its dataset."""

    def build(letter, num_tokens, held_out=0.0, **options):
        folder = tmp_path / letter
        folder.mkdir(exist_ok=True)
        (folder / "text.txt").write_text(letter * num_tokens)
        corpus = functools.partial(TextFiles, str(folder))
        return functools.partial(TextData, corpus=corpus, validation_fraction=held_out, separator="", **options)

    return build


def letters(batch):
    rows = [bytes(row).decode() for row in batch.tokens.tolist()]
    assert all(len(set(row)) == 1 for row in rows)
    return [row[0] for row in rows]


def test_a_mixture_returns_the_sequences_of_its_datasets_by_weight(text, tmp_path):
    names = {"books": text("b", 400), "code": text("c", 90)}
    dataset = Mixture(datasets=names, weights={"books": 3.0, "code": 1.0}).open(8, seed=5)
    assert collections.Counter(letters(dataset.batch(0, 1000))) == {"b": 750, "c": 250}
    assert letters(dataset.batch(120, 4)) == letters(dataset.batch(120, 1)) + letters(dataset.batch(121, 3))
    assert dataset.num_train_tokens == 490


def test_a_sequence_of_a_mixture_equals_that_of_the_dataset(tmp_path):
    def varied(name, count):
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} {n}. " for n in range(count)))
        return functools.partial(
            TextData, corpus=functools.partial(TextFiles, str(tmp_path / f"{name}.txt")), validation_fraction=0.2
        )

    dataset = Mixture(
        datasets={"one": varied("one", 60), "two": varied("two", 200)}, weights={"one": 1.0, "two": 2.0}
    ).open(8, 0)
    part_of, index_in_part = dataset.locate(np.arange(300))
    batch = dataset.batch(0, 300)
    for row in range(300):
        part = dataset.parts[("one", "two")[part_of[row]]]
        assert torch.equal(batch.tokens[row], part.batch(int(index_in_part[row]), 1).tokens[0])
        assert torch.equal(batch.targets[row], part.batch(int(index_in_part[row]), 1).targets[0])
    assert batch.num_targets == 300 * 8


def test_held_out_splits_are_combined_by_tokens(text):
    names = {"books": text("b", 4001, held_out=0.5), "code": text("c", 1001, held_out=0.5), "none": text("n", 50)}
    dataset = Mixture(datasets=names, weights={"books": 1.0, "code": 9.0, "none": 1.0}).open(8, 0)

    def counts(num_tokens):
        batches = list(dataset.validation_batches(16, num_tokens))
        targets = torch.cat([batch.targets.flatten() for batch in batches])
        found = collections.Counter(chr(t) for t in targets.tolist() if t != -100)
        assert sum(found.values()) == dataset.validation_bytes(num_tokens) == sum(b.num_targets for b in batches)
        return found

    assert counts(None) == counts(10**6) == {"b": 1999, "c": 499}
    assert sum(counts(500).values()) == 500
    assert counts(500)["b"] == pytest.approx(400, abs=2)


def test_documents_separated_by_one_dataset_stay_separated(text):
    names = {"apart": text("a", 100, separate_documents=True), "together": text("t", 100)}
    batch = Mixture(datasets=names, weights={"apart": 1.0, "together": 1.0}).open(8, 0).batch(0, 10)
    assert batch.documents.shape == (10, 8)
    assert all(len(set(row.tolist())) == 1 for row in batch.documents)


@pytest.mark.parametrize("sampling", [None, RandomWindows])
def test_an_epoch_of_a_concatenation_is_one_epoch_of_each_dataset_shuffled(text, sampling):
    options = {} if sampling is None else {"sampling": sampling}
    names = {"books": text("b", 161, **options), "code": text("c", 81, **options)}
    dataset = Concatenation(datasets=names).open(8, seed=2)
    assert dataset.num_sequences == 30
    epochs = [letters(dataset.batch(30 * epoch, 30)) for epoch in range(3)]
    for epoch in epochs:
        assert collections.Counter(epoch) == {"b": 20, "c": 10}
    assert len({tuple(epoch) for epoch in epochs}) == 3
    for epoch in range(3):
        part_of, index_in_part = dataset.locate(np.arange(30 * epoch, 30 * epoch + 30))
        assert sorted(index_in_part[part_of == 0]) == list(range(20 * epoch, 20 * epoch + 20))
        assert sorted(index_in_part[part_of == 1]) == list(range(10 * epoch, 10 * epoch + 10))


def test_mixtures_can_be_nested(text):
    inner = functools.partial(
        Mixture, datasets={"a": text("a", 100), "b": text("b", 100)}, weights={"a": 1.0, "b": 1.0}
    )
    dataset = Mixture(datasets={"inner": inner, "c": text("c", 100)}, weights={"inner": 1.0, "c": 1.0}).open(8, 0)
    assert collections.Counter(letters(dataset.batch(0, 400))) == {"a": 100, "b": 100, "c": 200}


def test_datasets_have_separate_seeds_and_the_hash_covers_all(text):
    same = text("s", 400)
    mixed = Mixture(datasets={"one": same, "two": same}, weights={"one": 1.0, "two": 1.0}).open(8, 0)
    one, two = (part._sequences._seed for part in mixed.parts.values())
    assert one != two
    other = Mixture(datasets={"one": same, "two": text("o", 400)}, weights={"one": 1.0, "two": 1.0}).open(8, 0)
    assert mixed.sha256 != other.sha256


def test_an_error_of_a_dataset_has_its_name(text):
    with pytest.raises(DataError, match="short: the training text has 3 tokens"):
        Mixture(datasets={"long": text("l", 99), "short": text("s", 3)}, weights={"long": 1.0, "short": 1.0}).open(8, 0)


def test_datasets_with_different_tokenizers_are_refused(text):
    class Larger(ByteTokenizer):
        vocab_size = 300

    names = {"a": text("a", 99, tokenizer=ByteTokenizer), "b": text("b", 99, tokenizer=Larger)}
    listed = r"a has ByteTokenizer \(256 tokens, .*, b has Larger \(300 tokens"
    with pytest.raises(DataError, match=f"the data must share one tokenizer: {listed}"):
        Concatenation(datasets=names).open(8, 0)


def test_parts_without_a_tokenizer_take_that_of_another_part(text):
    extended = functools.partial(ByteTokenizer, added_tokens=["<a>"])
    names = {"a": text("a", 99), "b": text("b", 99, tokenizer=ByteTokenizer), "c": text("c", 99, tokenizer=extended)}
    data = Concatenation(datasets=names)
    dataset = data.open(8, 0)
    assert data.tokenizer.vocab_size == dataset.tokenizer.vocab_size == 257  # b has the same without its last token
    assert [part.tokenizer.vocab_size for part in dataset.parts.values()] == [257, 256, 257]
    without = Concatenation(datasets={"a": text("a", 99), "b": text("b", 99)})
    assert not without.has_own_tokenizer
    without.lend_tokenizer(extended)
    assert without.open(8, 0).tokenizer.vocab_size == 257


@pytest.mark.parametrize(
    ("weights", "message"),
    [({"a": 1.0}, "must be given for a, b"), ({"a": 1.0, "b": 0.0}, "must be positive")],
)
def test_invalid_weights_are_refused(text, weights, message):
    with pytest.raises(ValueError, match=message):
        Mixture(datasets={"a": text("a", 99), "b": text("b", 99)}, weights=weights)


def test_epochs_of_a_mixture_are_those_of_its_datasets_by_weight(text):
    inner = functools.partial(Mixture, datasets={"a": text("a", 81), "b": text("b", 41)}, weights={"a": 1.0, "b": 3.0})
    dataset = Mixture(datasets={"inner": inner, "c": text("c", 161)}, weights={"inner": 4.0, "c": 1.0}).open(8, 0)
    # 10, 5 and 20 sequences of 8; 800 of 1,000 are from the inner mixture, 200 of these from its first dataset.
    assert dataset.epochs(1000) == pytest.approx({"inner/a": 20.0, "inner/b": 120.0, "c": 10.0})


def test_epochs_of_a_concatenation_are_those_of_the_whole(text):
    dataset = Concatenation(datasets={"a": text("a", 81), "b": text("b", 41)}).open(8, 0)
    assert dataset.epochs(60) == {"": 4.0}


def test_epochs_of_token_files_in_a_mixture_are_known_before_they_are_opened(text, tmp_path):
    files = {
        name: functools.partial(TokenFiles, str(write_folder(tmp_path / name, ["x" * 49] * count)))
        for name, count in (("few", 2), ("many", 20))
    }  # documents of 50 tokens with the zero byte
    mixture = Mixture(datasets={**files, "text": text("t", 50)}, weights={"few": 1.0, "many": 2.0, "text": 1.0})
    assert mixture.num_train_tokens is None
    assert mixture.epochs(4000) == pytest.approx({"few": 10.0, "many": 2.0})
    assert Concatenation(datasets=files).num_train_tokens == 1100
    assert Concatenation(datasets=files).epochs(4400) == {"": 4.0}
