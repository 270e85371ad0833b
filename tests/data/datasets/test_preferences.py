"""Pairs of answers: the forms of TRL, their targets byte by byte, and their places in sequences."""

import functools
import json
import logging

import numpy as np
import pytest

from ml.data import DataError, PackedDocuments, PreferenceData, PreferenceFiles

ASK = [{"role": "user", "content": "Hi"}]
YES, NO = ([{"role": "assistant", "content": text}] for text in ("Hello!", "Go."))
TALK = [*ASK, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Bye"}]
FORMS = {
    "texts": ({"prompt": "2+2=", "chosen": " 4", "rejected": " 5!"}, "2+2=[ 4\0]", "2+2=[ 5!\0]"),
    "texts without a prompt": ({"chosen": "a b c", "rejected": "a b dd"}, "a b[ c\0]", "a b[ dd\0]"),
    "messages": (
        {"prompt": ASK, "chosen": YES, "rejected": NO},
        "User: Hi\nAssistant: [Hello!\n\0]",
        "User: Hi\nAssistant: [Go.\n\0]",
    ),
    "messages without a prompt": (
        {"chosen": [*TALK, *YES], "rejected": [*TALK, *NO]},
        "User: Hi\nAssistant: Yes?\n\0User: Bye\nAssistant: [Hello!\n\0]",
        "User: Hi\nAssistant: Yes?\n\0User: Bye\nAssistant: [Go.\n\0]",
    ),
}


@pytest.fixture
def pairs(tmp_path):
    """Opens preferences, one a line."""

    def build(*records, length=200, seed=0, on_error="stop", **options):
        file = tmp_path / "pairs.jsonl"
        file.write_text("\n".join(json.dumps(record) for record in records))
        corpus = functools.partial(PreferenceFiles, str(file), on_error=on_error)
        return PreferenceData(**{"corpus": corpus, "validation_fraction": 0.0, **options}).open(length, seed)

    return build


def shown(batch):
    """Returns each side of each row as text, with the targets in brackets."""
    sides = []
    for row in range(len(batch.tokens)):
        arrays = (batch.tokens[row].numpy(), batch.targets[row].numpy(), batch.documents[row].numpy())
        for side in range(2 * batch.pairs_per_sequence[row]):
            tokens, targets = (array[arrays[2] == side] for array in arrays[:2])
            text, inside = bytearray(), False
            ids, is_target = np.append(tokens, targets[-1]), np.append(False, targets != -100)
            assert (ids[1:] == targets)[targets != -100].all()
            for token, learned in zip(ids.tolist(), is_target.tolist(), strict=True):
                if learned != inside:
                    text += b"[" if learned else b"]"
                    inside = learned
                text.append(token)
            sides.append(text.decode() + ("]" if inside else ""))
    return sides


@pytest.mark.parametrize(("record", "chosen", "rejected"), FORMS.values(), ids=FORMS)
def test_answers_are_the_targets_of_both_sides(pairs, record, chosen, rejected):
    begin = "\0"  # the begin of each side, which bytes have in common with its end
    assert shown(pairs(record).batch(0, 1)) == [begin + chosen, begin + rejected]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "pairs.jsonl:1: must be"),
        ({"prompt": "a", "chosen": YES, "rejected": NO}, "all of one kind"),
        ({"prompt": ASK, "chosen": YES, "rejected": "no"}, "all of one kind"),
        ({"chosen": "same", "rejected": "same"}, "'chosen' and 'rejected' are equal"),
        ({"prompt": ASK, "chosen": ASK, "rejected": NO}, "'chosen' has no answer of the assistant"),
        ({"prompt": [{"role": "judge", "content": "?"}], "chosen": YES, "rejected": NO}, "judge"),
    ],
)
def test_other_lines_are_refused_or_skipped(pairs, record, message, caplog):
    with pytest.raises(DataError, match=message):
        pairs(record)
    with caplog.at_level(logging.WARNING):
        dataset = pairs(record, FORMS["texts"][0], on_error="skip")
    assert shown(dataset.batch(0, 1)) == ["\0" + side for side in FORMS["texts"][1:]]
    assert "skipped" in caplog.text


def test_an_epoch_has_every_pair_once_and_sides_stay_together(pairs):
    records = [{"prompt": f"{n}:", "chosen": "y" * (n % 7 + 1), "rejected": "n" * (n % 5 + 1)} for n in range(40)]
    expected = sorted(side for record in records for side in shown(pairs(record).batch(0, 1)))
    dataset = pairs(*records, length=64)
    whole = dataset.batch(0, dataset.num_sequences)
    assert sorted(shown(whole)) == expected
    assert whole.num_pairs == 40
    assert whole.num_targets == sum(
        record["chosen"].count("y") + record["rejected"].count("n") + 2 for record in records
    )
    pieces = whole.split(3)
    assert [side for piece in pieces for side in shown(piece)] == shown(whole)
    alone = pairs(*records, length=64, packing=functools.partial(PackedDocuments, max_documents=1))
    assert set(alone.batch(0, alone.num_sequences).pairs_per_sequence) == {1}
    both = type(whole).interleaved([whole.split(1)[0], whole.split(1)[1]], np.array([1, 0]))
    assert shown(both) == [*shown(whole.split(1)[1]), *shown(whole.split(1)[0])]


def test_pairs_of_a_prompt_are_held_out_together(pairs):
    records = [{"prompt": f"prompt {n % 10}:", "chosen": f"y{n}", "rejected": f"n{n}"} for n in range(60)]
    dataset = pairs(*records, validation_fraction=0.3)
    held_out = [side for batch in dataset.validation_batches(4) for side in shown(batch)]
    trained = shown(dataset.batch(0, dataset.num_sequences))
    prompts = [{side.split(":")[0] for side in part} for part in (held_out, trained)]
    assert prompts[0].isdisjoint(prompts[1])
    assert len(prompts[0]) == 3
    assert len(held_out) + len(trained) == 120
    assert dataset.statistics()[""].num_documents == len(trained)


def test_pairs_that_do_not_fit_are_skipped_or_refused(pairs, caplog):
    records = [{"prompt": "", "chosen": "y" * n, "rejected": "n"} for n in (3, 30)]
    size = (1 + 3 + 1 - 1) + (1 + 1 + 1 - 1)  # begin, answer and end of each side, without the last token
    with caplog.at_level(logging.WARNING):
        assert pairs(*records, length=size).batch(0, 1).num_pairs == 1
    assert "skipped 1 pairs of more than" in caplog.text
    with pytest.raises(DataError, match="both sides take"):
        pairs(*records, length=size, too_long="stop")
    with pytest.raises(DataError, match="no pair is left"):
        pairs(records[1], length=size)
