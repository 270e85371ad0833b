"""Streamed texts: whole characters, stop texts across tokens, and no retracted output."""

import itertools

import numpy as np
import pytest
from evaluated import small_model

from ml.data import ByteTokenizer
from ml.data.sequences.document_begin import Begin
from ml.data.sequences.document_separator import Separator
from ml.data.sequences.ending import Ending
from ml.models.generation import generate
from ml.models.sampling import Sampler
from ml.training.evaluation.continuations import StreamedText, continue_texts, encode_prompt


class Words:
    """As SentencePiece does, a word brings the space before it, and the first of a text loses it."""

    vocab_size = 5
    pieces = (" Call", " me", " Ish", "mael", ".")

    def decode(self, tokens):
        return "".join(self.pieces[token] for token in tokens).removeprefix(" ")


def grown(text, tokens):
    shown = []
    for token in tokens:
        text.add(token)
        shown.append(text.settled)
    text.finish()
    return [*shown, text.text]


@pytest.mark.parametrize("text", ["plain", "naïve — 日本語 😀!", "\ufffd there", "ends 😀"])
def test_characters_appear_whole_and_stay(text):
    streamed = StreamedText(ByteTokenizer(), b"prompt")
    shown = grown(streamed, text.encode())
    assert shown[-1] == text
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(shown))
    assert all(text.startswith(part) for part in shown)


def test_bytes_that_are_no_text_end_up_as_they_are_decoded_at_once():
    data = b"a\xffb\xe2\x82c\xf0\x9f\x98"
    assert grown(StreamedText(ByteTokenizer(), b""), data)[-1] == data.decode("utf-8", errors="replace")


@pytest.mark.parametrize("stops", [["END"], ["D. S", "END"], ["ENDING", "E"], ["ü"], ["nowhere"], ["\n\n", "ND"]])
def test_a_text_stops_before_the_first_stop_text_that_is_complete(stops):
    text = "An early ENd, the END. So über."
    streamed = StreamedText(ByteTokenizer(), b"", stops)
    shown = grown(streamed, text.encode())
    ends = {text.find(stop) + len(stop): stop for stop in stops if stop in text}
    expected = text[: text.find(ends[min(ends)])] if ends else text
    assert shown[-1] == expected
    assert streamed.stopped_by == (ends[min(ends)] if ends else None)
    assert all(expected.startswith(part) for part in shown)


def test_a_stop_text_in_the_prompt_or_across_its_end_does_not_stop():
    streamed = StreamedText(ByteTokenizer(), b"the EN", ["END"])
    assert grown(streamed, b"D and END")[-1] == "D and "


def test_what_may_begin_a_stop_text_is_held_back_and_no_more():
    streamed = StreamedText(ByteTokenizer(), b"", ["END"])
    assert grown(streamed, b"xEExEN") == ["x", "x", "xE", "xEEx", "xEEx", "xEEx", "xEExEN"]


def test_a_tokenizer_with_another_first_token_continues_with_a_space():
    assert grown(StreamedText(Words(), [0]), [1, 2, 3, 4])[-1] == " me Ishmael."
    assert grown(StreamedText(Words(), []), [0, 1])[-1] == "Call me"


def test_many_texts_are_those_of_each_alone():
    model, tokenizer = small_model(), ByteTokenizer()
    prompts = [b"one", b"a longer prompt", b"x"]
    together = continue_texts(model, tokenizer, prompts, 20, Sampler(0.0), stops=["\x01"])
    for prompt, made in zip(prompts, together, strict=True):
        tokens = np.array([int(token) for token in generate(model, [prompt], 20, Sampler(0.0))])
        assert made.text == tokenizer.decode(tokens).partition("\x01")[0]


def test_tokens_that_the_tokenizer_does_not_have_are_never_drawn():
    model, tokenizer = small_model(), ByteTokenizer()
    tokenizer.vocab_size = 100
    made = continue_texts(model, tokenizer, [b"one", b"two"], 60, Sampler(5.0))
    assert all(max(text.text.encode()) < 100 for text in made)
    assert max(int(token) for token in generate(model, [b"one"], 60, Sampler(5.0))) >= 100


def test_a_prompt_starts_where_a_document_does_in_training():
    tokenizer = ByteTokenizer()
    separator = Separator.of(tokenizer, None)
    after, inserted = Begin.after(separator), Begin.of(tokenizer, separator, None, separates=True)
    assert encode_prompt("ab", tokenizer, after) == [97, 98]
    assert encode_prompt("", tokenizer, after) == [0]
    assert encode_prompt("ab", tokenizer, inserted) == [0, 97, 98]
    assert encode_prompt("", tokenizer, inserted) == [0]
    nothing = Begin.after(Separator.of(tokenizer, ""))
    with pytest.raises(ValueError, match="no separator or begin token to start from"):
        encode_prompt("", tokenizer, nothing)
    with pytest.raises(ValueError, match="not UTF-8"):
        encode_prompt("a\udcff", tokenizer, nothing)


class WithEnd(Words):
    """Has a token for the end of a document that shows as nothing."""

    end_of_document = 3

    def decode(self, tokens):
        return super().decode([token for token in tokens if token != 3])


def test_a_document_ends_with_its_token_though_that_shows_as_nothing():
    separator = Separator.of(WithEnd(), None)
    assert (separator.text, separator.token) == ("", 3)
    streamed = StreamedText(WithEnd(), [0], ending=Ending.of(separator))
    for token in (1, 3, 2):
        streamed.add(token)
    assert (streamed.text, streamed.stopped_by, streamed.num_tokens) == (" me", "", 2)
    assert encode_prompt("", WithEnd(), Begin.after(separator)) == [3]


def test_text_that_spells_an_end_token_does_not_end_a_text_and_text_before_the_token_is_trimmed():
    streamed = StreamedText(ByteTokenizer(), [], ending=Ending(frozenset({0, 200}), (), "\n"))
    seen = []
    for token in (*b"a\nb<end>\n", 200, *b"c"):
        streamed.add(token)
        seen.append(streamed.settled)
    assert (streamed.text, streamed.num_tokens) == ("a\nb<end>", 10)
    assert seen[:3] == ["a", "a", "a\nb"]  # a line break is shown once it is known to belong to the text
    assert seen[-1] == streamed.text
    texts = StreamedText(ByteTokenizer(), [], ending=Ending.of(Separator.of(ByteTokenizer(), "##")))
    for token in b"a#b##c":
        texts.add(token)
    assert (texts.text, texts.stopped_by) == ("a#b", "##")
