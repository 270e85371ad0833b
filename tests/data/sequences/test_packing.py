"""Packing against brute force: rows are split into documents and compared."""

import collections

import numpy as np
import pytest
import torch

from ml.data import DataError, PackedDocuments
from ml.data.sequences.packing import first_fit
from ml.data.sequences.streams import ArrayStream

RANDOM = np.random.default_rng(0)


def stream_of(lengths, **options):
    """Returns documents of these lengths with distinct tokens."""
    tokens = np.arange(sum(lengths), dtype=np.uint32) + 1
    return ArrayStream(tokens, np.cumsum(lengths, dtype=np.int64), **options)


def pieces_of(batch):
    """Returns (inputs, targets) of each document in a row, without padding."""
    found = []
    for tokens, targets, documents in zip(batch.tokens, batch.targets, batch.documents, strict=True):
        for number in documents.unique_consecutive().tolist():
            here = documents == number
            if (targets[here] != -100).any():
                found.append((tokens[here].tolist(), targets[here].tolist()))
            else:
                assert not tokens[here].any()
    return found


def expected_pieces(lengths, size):
    """Returns the expected pieces of the documents, by plain loops."""
    pieces, first = [], 1
    for length in lengths:
        document = list(range(first, first + length))
        first += length
        for start in range(0, length - 1, size):
            pieces.append((document[start:-1][:size], document[start + 1 :][:size]))
    return pieces


LENGTHS = {
    "many": RANDOM.integers(1, 14, 200).tolist(),
    "one token, two tokens": [1, 2, 1, 1, 2],
    "longer than a sequence": [9, 10, 17, 18, 40, 3],
    "one": [8],
}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("window", [1, 7, 4096])
@pytest.mark.parametrize("longest_first", [True, False])
@pytest.mark.parametrize("max_documents", [None, 1, 2])
def test_an_epoch_has_every_piece_of_every_document_once(lengths, window, longest_first, max_documents):
    packing = PackedDocuments(window=window, longest_first=longest_first, max_documents=max_documents)
    made = packing.sequences(stream_of(lengths), 8, seed=3, separate=True)
    expected = sorted(expected_pieces(lengths, 8))
    for epoch in range(2):
        batch = made.batch(np.arange(made.num_sequences) + epoch * made.num_sequences)
        assert sorted(pieces_of(batch)) == expected
        if max_documents is not None:
            assert all(len(pieces_of(made.batch(np.array([row])))) <= max_documents for row in range(5))
    held_out = packing.in_order(stream_of(lengths), 8, separate=True, num_tokens=None)
    assert sorted(pieces_of(held_out.batch(np.arange(held_out.num_sequences)))) == expected


def test_epochs_have_the_same_sequences_in_another_order():
    made = PackedDocuments().sequences(stream_of(LENGTHS["many"]), 16, seed=0, separate=True)
    first, second = (made.batch(np.arange(made.num_sequences) + made.num_sequences * e).tokens for e in (0, 1))
    assert not torch.equal(first, second)
    assert sorted(first.tolist()) == sorted(second.tolist())


def test_the_seed_determines_the_packing_and_a_sequence_is_a_function_of_its_index():
    def build(seed):
        return PackedDocuments().sequences(stream_of(LENGTHS["many"]), 16, seed, separate=True)

    one, same, other = build(1), build(1), build(2)
    numbers = np.array([17, 3, 90, 4])
    for tensor, again in zip(one.batch(numbers).inputs.values(), same.batch(numbers).inputs.values(), strict=True):
        assert torch.equal(tensor, again)
    alone = torch.cat([same.batch(np.array([number])).tokens for number in numbers])
    assert torch.equal(one.batch(numbers).tokens, alone)
    rows = [{tuple(row) for row in made.batch(np.arange(made.num_sequences)).tokens.tolist()} for made in (one, other)]
    assert rows[0] != rows[1]


@pytest.mark.parametrize("max_items", [None, 1, 3])
@pytest.mark.parametrize("capacity", [8, 20])
def test_first_fit_equals_plain_loops(capacity, max_items):
    sizes = RANDOM.integers(1, capacity + 1, 300)
    bins, held = [], collections.defaultdict(list)
    for size in sizes.tolist():
        place = 0
        while sum(held[place]) + size > capacity or len(held[place]) == max_items:
            place += 1
        held[place].append(size)
        bins.append(place)
    assert first_fit(sizes, capacity, max_items).tolist() == bins


def test_documents_without_separation_attend_to_but_do_not_predict_each_other():
    separate, together = (
        PackedDocuments().sequences(stream_of(LENGTHS["many"]), 16, 0, separate).batch(np.arange(9))
        for separate in (True, False)
    )
    assert together.documents is None
    assert torch.equal(separate.targets, together.targets)


def test_masked_targets_are_ignored():
    lengths = [5, 6, 3]
    predicted = RANDOM.integers(0, 2, 14).astype(bool)
    batch = (
        PackedDocuments().sequences(stream_of(lengths, predicted=predicted), 16, 0, separate=True).batch(np.array([0]))
    )
    kept = {target for target in batch.targets.flatten().tolist() if target != -100}
    starts = {1, 6, 12}
    assert kept == {place + 1 for place in np.flatnonzero(predicted)} - starts


@pytest.mark.parametrize("num_tokens", [1, 7, 8, 9, 50, 10_000])
def test_held_out_documents_in_order_predict_the_requested_number_of_tokens(num_tokens):
    lengths = LENGTHS["many"]
    made = PackedDocuments().in_order(stream_of(lengths), 8, True, num_tokens)
    batch = made.batch(np.arange(made.num_sequences))
    targets = [token for _, targets in expected_pieces(lengths, 8) for token in targets]
    assert sorted(batch.targets[batch.targets != -100].tolist()) == targets[:num_tokens]


def test_efficiency_is_the_fraction_of_positions_with_targets():
    made = PackedDocuments().sequences(stream_of(LENGTHS["many"]), 16, seed=0, separate=True)
    batch = made.batch(np.arange(made.num_sequences))
    assert made.describe()["packing_efficiency"] == pytest.approx(batch.num_targets / batch.targets.numel(), abs=1e-4)
    assert made.describe()["packing_efficiency"] > 0.98


def test_documents_without_targets_are_refused():
    for lengths in ([], [1], [1, 1, 1]):
        with pytest.raises(DataError, match="nothing to predict"):
            PackedDocuments().sequences(stream_of(lengths), 8, 0, separate=True)
