"""Statistics of opened data, against counts by hand."""

import numpy as np
import pytest

from ml.data import Concatenation, Mixture, PackedDocuments, RandomWindows, ShuffledEpochs, TextData, TextFiles
from ml.data.sequences.streams import ArrayStream

LENGTH = 8


def stream_of(lengths):
    return ArrayStream.of([np.full(length, 1, dtype=np.uint8) for length in lengths])


def whole_in_windows(lengths):
    """Counts the documents that a window of `LENGTH` + 1 tokens, from a multiple of `LENGTH`, holds whole."""
    ends = np.cumsum(lengths).tolist()
    positions = [set(range(end - length, end)) for end, length in zip(ends, lengths, strict=True)]
    windows = [set(range(first, first + LENGTH + 1)) for first in range(0, ends[-1] - LENGTH, LENGTH)]
    return sum(any(document <= window for window in windows) for document in positions)


@pytest.mark.parametrize("seed", range(20))
def test_cut_documents_are_those_that_no_sequence_holds_whole(seed):
    lengths = np.random.default_rng(seed).integers(1, 14, size=12).tolist()
    stream = stream_of(lengths)

    def cut(sampling):
        return sampling.sequences(stream, LENGTH, 0, True).num_cut_documents()

    assert cut(ShuffledEpochs()) == len(lengths) - whole_in_windows(lengths)
    too_long = sum(length > LENGTH + 1 for length in lengths)
    assert cut(RandomWindows()) == too_long
    assert cut(PackedDocuments(window=4)) == too_long


@pytest.fixture
def text(tmp_path):
    """Makes text data of documents of given lengths, without the separator."""

    def make(name, lengths):
        folder = tmp_path / name
        folder.mkdir()
        for number, length in enumerate(lengths):
            (folder / f"{number}.txt").write_text("x" * length)
        return lambda: TextData(lambda: TextFiles([str(folder)]), validation_fraction=0.0)

    return make


def test_lengths_and_learned_tokens_are_counted(text):
    (one,) = text("books", [3, 9, 4, 60])().open(LENGTH, 0).statistics().values()
    assert (one.num_documents, one.num_tokens) == (4, 80)  # each with its zero byte
    assert (one.shortest, one.median, one.mean, one.longest) == (4, 7.5, 20.0, 61)
    assert one.num_learned is None
    masked = stream_of([3, 4])
    masked.predicted = np.array([0, 1, 1, 0, 0, 0, 1], dtype=bool)
    assert masked.num_learned == 3


def test_portions_of_a_mixture_are_the_sequences_that_a_run_takes(text):
    parts = {"a": text("a", [90, 80]), "b": text("b", [400])}
    data = Mixture(parts, {"a": 1.0, "b": 3.0}, earlier=[(10, {"a": 1.0, "b": 1.0})])
    dataset = data.open(LENGTH, 0)
    assert set(dataset.statistics()) == {"a", "b"}
    for count in (1, 10, 57, 200):
        part_of, _ = dataset.locate(np.arange(count))
        for number, (name, portion) in enumerate(dataset.portions(count).items()):
            taken = int((part_of == number).sum())
            assert portion.share == pytest.approx(taken / count)
            assert portion.epochs == pytest.approx(taken / dataset.parts[name].num_sequences)


def test_an_epoch_of_a_concatenation_is_one_of_each_part_and_names_are_nested(text):
    inner = lambda: Concatenation({"a": text("a", [90, 80]), "b": text("b", [400])})  # noqa: E731
    dataset = Concatenation({"inner": inner, "c": text("c", [50])}).open(LENGTH, 0)
    portions = dataset.portions(2 * dataset.num_sequences)
    assert list(portions) == list(dataset.statistics()) == ["inner/a", "inner/b", "c"]
    assert [portion.epochs for portion in portions.values()] == pytest.approx([2.0, 2.0, 2.0])
    assert sum(portion.share for portion in portions.values()) == pytest.approx(1.0)
