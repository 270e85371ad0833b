"""Texts that a model goes on with, up to a length or to what they are to stop before."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ml.data.sequences.document_separator import Separator
from ml.data.tokenizers import Tokenizer
from ml.models.generation import generate
from ml.models.language_model import LanguageModel
from ml.models.sampling import Sampler

_NOT_WHOLE = "\ufffd"  # what half a character is decoded to


class StreamedText:
    """A text that is made token by token, until it comes to one of the texts that it is to stop before.

    text: the whole characters so far, without what it stopped before. stopped_by: that, or None.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        stops: Sequence[str] = (),
        separator: Separator | None = None,
    ):
        """`prompt`: the tokens before the text. Some tokenizers begin a text in another way than they go on with it."""
        self._end = None if separator is None else separator.token
        stops = [*stops, *([separator.text] if separator is not None else [])]
        self.text = ""
        self.stopped_by: str | None = None
        self.num_tokens = 0
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._longest = max(map(len, self._stops), default=0)
        # Only the tokens from `_anchor` on are decoded again; those before `_read` have been read.
        self._tokens = list(prompt)
        self._anchor, self._read = 0, len(self._tokens)

    def add(self, token: int) -> None:
        """Appends what comes next; nothing where the text has come to its end."""
        if self.stopped_by is not None:
            return
        self.num_tokens += 1
        if token == self._end:
            self.finish()
            self.stopped_by = self._tokenizer.decode([token])
            return
        self._tokens.append(token)
        self._extend(is_last=False)

    def finish(self) -> None:
        """Half a character that is still waited for becomes U+FFFD."""
        if self.stopped_by is None:
            self._extend(is_last=True)

    @property
    def settled(self) -> str:
        """The text without an end that may turn out to be the beginning of what it is to stop before."""
        if self.stopped_by is None:
            for length in range(min(self._longest - 1, len(self.text)), 0, -1):
                end = self.text[-length:]
                if any(stop.startswith(end) for stop in self._stops):
                    return self.text[:-length]
        return self.text

    def _extend(self, is_last: bool) -> None:
        known = self._tokenizer.decode(self._tokens[self._anchor : self._read])
        decoded = self._tokenizer.decode(self._tokens[self._anchor :])
        if decoded.endswith(_NOT_WHOLE) and not is_last:
            return
        searched = max(len(self.text) - self._longest + 1, 0)
        self.text += decoded[len(known) :]
        self._tokens = self._tokens[self._read :]
        self._anchor, self._read = 0, len(self._tokens)
        found = [(place, stop) for stop in self._stops if (place := self.text.find(stop, searched)) >= 0]
        if found:
            place, self.stopped_by = min(found)
            self.text = self.text[:place]


class Continuation(NamedTuple):
    """What a model went on with."""

    text: str
    num_tokens: int  # that were drawn for it
    stopped_by: str | None  # the text that it stopped before, which is left out; None where the length ended it


def continue_texts(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    sampler: Sampler,
    seed: int = 0,
    *,
    stops: Sequence[str] = (),
    separator: Separator | None = None,
    show: Callable[[int, str], None] | None = None,
) -> list[Continuation]:
    """Goes on from each prompt for at most `num_tokens` tokens, or until the text comes to one of `stops` or to the
    `separator` of documents.

    show: is called with the number of a prompt and all of its text that is certain, as it grows.

    Raises ValueError for no prompt or an empty one, and where learned positions end.
    """
    texts = [StreamedText(tokenizer, prompt, stops, separator) for prompt in prompts]
    for tokens in generate(model, prompts, num_tokens, sampler, seed, num_choices=tokenizer.vocab_size):
        for row, token in enumerate(tokens.tolist()):
            texts[row].add(token)
            if show is not None:
                show(row, texts[row].settled)
        if all(text.stopped_by is not None for text in texts):
            break
    for text in texts:
        text.finish()
    return [Continuation(text.text, text.num_tokens, text.stopped_by) for text in texts]


def encode_prompt(text: str, tokenizer: Tokenizer, separator: Separator) -> list[int]:
    """The tokens of a prompt; an empty one is the start of a document, which is behind a separator.

    Raises ValueError where there is neither text nor separator, and for text that UTF-8 does not have.
    """
    if not text and len(separator.tokens):
        return separator.tokens.tolist()
    if not text:
        raise ValueError("the prompt is empty, and the data of the run has no separator to start from")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"the prompt is not UTF-8 (character {error.start})") from None
    return tokenizer.encode(text).tolist()
