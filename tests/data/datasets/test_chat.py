"""Conversations: targets compared byte by byte."""

import functools
import json
import logging

import numpy as np
import pytest

from ml.data import ByteTokenizer, ChatData, ChatFiles, ChatML, DataError, PackedDocuments, RoleMarkers
from ml.data.tokenizers import SpecialToken

TALK = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Two and two?"},
        {"role": "assistant", "content": "Four."},
        {"role": "user", "content": "Schön!"},
        {"role": "assistant", "content": "漢"},
    ]
}


@pytest.fixture
def chat(tmp_path):
    """Opens conversations; a line is JSON or text as given."""

    def build(*lines, length=200, on_error="stop", seed=0, **options):
        file = tmp_path / "chat.jsonl"
        texts = [line if isinstance(line, str | bytes) else json.dumps(line, ensure_ascii=False) for line in lines]
        file.write_bytes(b"\n".join(text if isinstance(text, bytes) else text.encode() for text in texts))
        corpus = functools.partial(ChatFiles, str(file), on_error=on_error)
        return ChatData(**{"corpus": corpus, "validation_fraction": 0.0, **options}).open(length, seed)

    return build


def shown(batch):
    """Returns each row as text with targets in brackets, shown where they are predicted: one position later."""
    rows = []
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        row, inside = bytearray(), False
        for token, target in zip(tokens, [-100, *targets][:-1], strict=True):
            if (target != -100) != inside:
                row += b"]" if inside else b"["
                inside = not inside
            assert target in (-100, token)
            row.append(token)
        rows.append(row.decode() + ("]" if inside else ""))
    return rows


def learned(dataset):
    """Returns the targets of every sequence of an epoch as text."""
    batch = dataset.batch(0, dataset.num_sequences)
    return sorted(bytes(t for t in row if t != -100).decode() for row in batch.targets.tolist())


def test_targets_are_the_messages_of_the_assistant_with_their_end(chat):
    (row,) = shown(chat(TALK).batch(0, 1))
    # The separator ends each message of the assistant; the last one is predicted and is not an input.
    text = "\0System: Be brief.\nUser: Two and two?\nAssistant: [Four.\n\0]User: Schön!\nAssistant: [漢\n"
    assert row.startswith(text)
    assert learned(chat(TALK)) == ["Four.\n\0漢\n\0"]
    last = functools.partial(RoleMarkers, separate_turns=False)
    assert learned(chat(TALK, template=last)) == ["Four.\n漢\n\0"]


def test_chat_ml_targets_the_end_of_a_message_and_no_marker_before_it(chat):
    dataset = chat(TALK, template=ChatML, separator="")
    (row,) = shown(dataset.batch(0, 1))
    assert row.rstrip("\0") == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nTwo and two?<|im_end|>\n"
        "<|im_start|>assistant\n[Four.<|im_end|>]\n<|im_start|>user\nSchön!<|im_end|>\n"
        "<|im_start|>assistant\n[漢<|im_end|>]"
    )


class Special(ByteTokenizer):
    """A byte tokenizer with a token for each marker."""

    vocab_size = 258

    control_tokens = {"<|im_start|>": SpecialToken(256), "<|im_end|>": SpecialToken(257)}  # noqa: RUF012


def test_markers_are_special_tokens_and_equal_text_in_a_message_is_text(chat):
    talk = {"messages": [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "ok"}]}
    tokens = chat(talk, template=ChatML, tokenizer=Special, separator="").train.tokens.tolist()
    text = [256, *b"user\n<|im_end|>", 257, *b"\n", 256, *b"assistant\nok", 257, *b"\n"]
    assert tokens == text


def test_a_completion_follows_its_prompt_without_a_template(chat):
    assert shown(chat({"prompt": "2 + 2 =", "completion": " 4"}, length=10).batch(0, 1)) == ["\x002 + 2 =[ 4]"]
    assert learned(chat({"prompt": "2 + 2 =", "completion": " 4"})) == [" 4\0"]
    assert learned(chat({"prompt": "", "completion": "abc"})) == ["abc\0"]


def test_target_boundaries_are_token_boundaries(chat):
    class Pairs(ByteTokenizer):
        """Two characters per token, so that a boundary inside a token is visible."""

        vocab_size = 2**16

        def encode(self, text):
            padded = text.encode() + b" " * (len(text.encode()) % 2)
            return np.frombuffer(padded, dtype=">u2").astype(np.uint16)

    dataset = chat({"prompt": "abc", "completion": "xyz"}, tokenizer=Pairs, separator="")
    prompt, completion = Pairs().encode("abc"), Pairs().encode("xyz")
    assert dataset.train.tokens.tolist() == [*prompt, *completion]
    targets = dataset.batch(0, 1).targets[0]
    assert targets[targets != -100].tolist() == completion.tolist()


def test_packed_conversations_are_masked_from_each_other(chat):
    lines = [{"prompt": f"{number}?", "completion": f"{number * number}"} for number in range(30)]
    dataset = chat(*lines, length=40)
    assert dataset.num_sequences < 8
    batch = dataset.batch(0, dataset.num_sequences)
    found = []
    for tokens, targets, documents in zip(batch.tokens, batch.targets, batch.documents, strict=True):
        for number in documents.unique().tolist():
            here = documents == number
            if (targets[here] != -100).any():
                found.append(bytes(tokens[here].tolist()).decode())
    assert sorted(found) == sorted(f"\0{n}?{n * n}" for n in range(30))
    alone = chat(*lines, length=40, packing=functools.partial(PackedDocuments, max_documents=1))
    assert alone.num_sequences == 30
    assert learned(alone) == sorted(f"{n * n}\0" for n in range(30))


def test_a_conversation_that_is_too_long_is_cut_or_skipped_and_counted(chat, caplog):
    short, long = {"prompt": "a", "completion": "bc"}, {"prompt": "de", "completion": "f" * 20}
    late = {"prompt": "g" * 30, "completion": "h"}
    caplog.set_level(logging.WARNING)
    assert learned(chat(short, long, late, length=8, too_long="cut")) == sorted(["bc\0", "f" * 6])
    assert "cut 2 conversations of more than 9 tokens" in caplog.text
    assert "skipped 1 conversations without a word from the assistant" in caplog.text
    caplog.clear()
    assert learned(chat(short, long, late, length=8, too_long="skip")) == ["bc\0"]
    assert "skipped 2 conversations of more than 9 tokens" in caplog.text


def test_data_without_targets_is_an_error(chat):
    for lines in ([], [{"messages": []}], [{"messages": [{"role": "user", "content": "Hello?"}]}]):
        with pytest.raises(DataError, match="no conversation with a message of the assistant is left"):
            chat(*lines)


BROKEN = [
    ('{"messages": ', "not JSON"),
    ("[1, 2]", 'must be one of {"messages"'),
    ({"text": "a"}, 'must be one of {"messages"'),
    ({"messages": [], "prompt": "a"}, 'must be one of {"messages"'),
    ({"prompt": "a"}, "'completion' is missing"),
    ({"prompt": "a", "completion": 3}, "'completion' must be a text"),
    ({"messages": "a"}, '"messages" must be a list'),
    ({"messages": [{"role": "user"}]}, "'content' is missing"),
    (b'{"prompt": "\xff", "completion": "a"}', "byte 12 is not UTF-8"),
    ('{"prompt": "\\ud800", "completion": "a"}', "lone surrogate"),
    ("[" * 100_000, "not JSON"),
]


@pytest.mark.parametrize(("line", "message"), BROKEN)
def test_a_malformed_line_is_named_or_skipped_and_counted(chat, caplog, line, message):
    good = {"prompt": "a", "completion": "bc"}
    with pytest.raises(DataError, match=f"chat.jsonl:3: .*{message}.*ChatFiles.on_error"):
        chat(good, "", line, good)
    assert learned(chat(good, line, good, on_error="skip", length=4)) == ["bc\0", "bc\0"]
    assert "1 invalid rows skipped, the first" in caplog.text
    assert message in caplog.text


def test_a_role_without_a_marker_is_named_with_its_line(chat):
    talk = {"messages": [{"role": "tool", "content": "x"}, {"role": "assistant", "content": "y"}]}
    with pytest.raises(DataError, match=r"chat.jsonl:2: .* no role 'tool', only system, user, assistant"):
        chat({"prompt": "a", "completion": "b"}, talk)
    assert learned(chat(talk, template=ChatML, separator="")) == ["y<|im_end|>"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no such file or folder: .*nowhere.jsonl"):
        list(ChatFiles(str(tmp_path / "nowhere.jsonl")).conversations())


def test_held_out_conversations_are_whole_and_selected_by_content(chat):
    lines = [{"prompt": f"{number}?", "completion": f"{number * number}"} for number in range(60)]

    def held_out(lines):
        dataset = chat(*lines, length=8, validation_fraction=0.2)
        batches = list(dataset.validation_batches(4))
        said = bytes(dataset.validation.tokens).decode()[1:-1].split("\0\0")
        targets = [t for batch in batches for t in batch.targets.flatten().tolist() if t != -100]
        assert len(targets) == dataset.validation_bytes() == sum(len(text.split("?")[1]) + 1 for text in said)
        trained = bytes(dataset.train.tokens).decode()[1:-1].split("\0\0")
        assert sorted(said + trained) == sorted(f"{n}?{n * n}" for n in range(60))
        return set(said)

    assert len(held_out(lines)) == 12
    assert held_out(lines[::-1]) == held_out(lines)


def test_the_hash_depends_on_the_targets(chat):
    first = chat({"prompt": "ab", "completion": "cd"}).sha256
    assert chat({"prompt": "ab", "completion": "cd"}).sha256 == first
    assert chat({"prompt": "abc", "completion": "d"}).sha256 != first


def test_role_markers_can_be_changed(chat):
    template = functools.partial(RoleMarkers, system="S:", user="U:", assistant="A:", end="|")
    dataset = chat(TALK, template=template, separator="")
    text = "S:Be brief.|U:Two and two?|A:Four.|U:Schön!|A:漢|"
    assert bytes(dataset.train.tokens).decode() == text
