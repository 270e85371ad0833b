"""Prepared conversations: the batches of the corpus, refusals, and the packing that is kept."""

import functools
import json

import numpy as np
import pytest
import torch

from ml.data import ChatData, ChatFiles, ChatML, DataError, PackedDocuments, RoleMarkers
from ml.data.errors import MissingData
from ml.data.preparation.conversations import prepare_conversations
from ml.data.sequences import packing
from ml.data.token_files.conversations import ConversationFolder

ROLES = ("system", "user", "assistant", "user", "assistant")


@pytest.fixture
def records():
    talks = [{"messages": [{"role": role, "content": f"{role[: n % 7]} {n}"} for role in ROLES]} for n in range(300)]
    long = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b" * 300}]}]
    silent = [{"messages": [{"role": "user", "content": "a" * 300}, {"role": "assistant", "content": "b"}]}]
    return [*talks, *long, *silent, {"prompt": "2 + 2 =", "completion": " 4"}, talks[0]]


@pytest.fixture
def chat(tmp_path, records):
    """Builds chat data, prepared or not."""
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, records)))
    corpus = functools.partial(ChatFiles, str(tmp_path / "chat.jsonl"), on_error="skip")
    return lambda **options: ChatData(**{"corpus": corpus, "template": RoleMarkers, **options})


def prepare(data, folder, num_workers=1):
    return prepare_conversations(data.corpus.conversations(), data.chat, folder, num_workers, data.corpus.on_error)


@pytest.mark.parametrize("too_long", ["cut", "skip"])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_prepared_conversations_make_the_batches_of_the_corpus(chat, tmp_path, too_long, num_workers, records):
    options = {"too_long": too_long, "validation_fraction": 0.1}
    summary = prepare(chat(), tmp_path / "out", num_workers)
    assert summary.num_conversations == len(records)
    ConversationFolder(tmp_path / "out").verify()
    expected = chat(**options).open(128, 3)
    for _ in range(2):  # the packing is new, then kept
        found = chat(prepared=str(tmp_path / "out"), **options).open(128, 3)
        assert found.sha256 == expected.sha256
        assert found.describe() == expected.describe()
        assert found.statistics() == expected.statistics()
        statistics = found.statistics()[""]
        assert (statistics.num_cut, statistics.num_skipped) == ((1, 1) if too_long == "cut" else (0, 2))
        count = 2 * expected.num_sequences + 1
        pairs = [(found.batch(0, count), expected.batch(0, count))]
        batches = (found.validation_batches(4), expected.validation_batches(4))
        pairs += list(zip(*batches, strict=True))
        for ours, theirs in pairs:
            assert all(torch.equal(ours.inputs[name], theirs.inputs[name]) for name in theirs.inputs)


def test_a_packing_is_kept_by_what_it_depends_on(chat, tmp_path, monkeypatch):
    prepare(chat(), tmp_path / "out")
    packed = []
    first_fit = packing.first_fit
    monkeypatch.setattr(packing, "first_fit", lambda *arguments: packed.append(1) or first_fit(*arguments))

    def opened(length=128, seed=0, **options):
        """Returns whether documents were packed, and the first sequences."""
        packed.clear()
        made = functools.partial(PackedDocuments, **options)
        batch = chat(prepared=str(tmp_path / "out"), packing=made).open(length, seed).batch(0, 4)
        return bool(packed), batch.tokens.tolist()

    first = opened()
    assert first[0]
    assert opened() == (False, first[1])
    for other in ({"length": 100}, {"seed": 1}, {"window": 50}, {"longest_first": False}, {"max_documents": 2}):
        assert opened(**other)[0], other
        assert not opened(**other)[0]
    for file in (tmp_path / "out").glob("packing-*.npz"):
        file.write_bytes(b"damaged")
    assert opened() == first


def test_folders_that_do_not_fit_are_refused(chat, tmp_path):
    folder = tmp_path / "out"
    with pytest.raises(MissingData, match="has no prepared conversations"):
        chat(prepared=str(folder)).open(128, 0)
    prepare(chat(), folder)
    for other in ({"template": ChatML}, {"separator": "\n\n"}, {"begin_token": "x"}):
        with pytest.raises(DataError, match="with another template, tokenizer, separator or begin token"):
            chat(prepared=str(folder), **other).open(128, 0)
    tokens = (folder / "tokens").read_bytes()
    (folder / "tokens").write_bytes(tokens[:-1])
    with pytest.raises(DataError, match="it was truncated"):
        chat(prepared=str(folder)).open(128, 0)
    (folder / "tokens").write_bytes(bytes([tokens[0] ^ 1]) + tokens[1:])
    with pytest.raises(DataError, match="tokens has changed"):
        ConversationFolder(folder).verify()
    (folder / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        ConversationFolder(folder)


def test_a_conversation_that_cannot_be_rendered_stops_or_is_skipped(tmp_path):
    (tmp_path / "chat.jsonl").write_text(
        "\n".join(json.dumps({"messages": [{"role": role, "content": "x"}]}) for role in ("judge", "assistant"))
    )
    data = [ChatData(functools.partial(ChatFiles, str(tmp_path / "chat.jsonl"), on_error=e)) for e in ("stop", "skip")]
    with pytest.raises(DataError, match=r"chat\.jsonl:1: .*judge"):
        prepare(data[0], tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert prepare(data[1], tmp_path / "out")[-1] == 1
    assert np.asarray(ConversationFolder(tmp_path / "out").ends).shape == (1,)
