"""Text generation from prompts, up to a length or a stop string."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ml.data import Data
from ml.data.chat.template import Chat
from ml.data.sequences.document_begin import Begin
from ml.data.sequences.ending import NO_ENDING, Ending
from ml.data.tokenizers import Tokenizer
from ml.models.generation import generate
from ml.models.language_model import LanguageModel
from ml.models.sampling import Sampler

_NOT_WHOLE = "\ufffd"  # the decoding of an incomplete UTF-8 sequence


class StreamedText:
    """A text that is decoded token by token until a stop string.

    Attributes:
        text: The complete characters so far, without the stop string.
        stopped_by: The stop string that ended the text, or None.
        num_tokens: Number of tokens added so far.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        stops: Sequence[str] = (),
        ending: Ending = NO_ENDING,
    ):
        """Starts an empty text.

        Args:
            tokenizer: Decodes the tokens.
            prompt: The tokens before the text; some tokenizers decode the first token of a text differently.
            stops: The stop strings.
            ending: What ends the text besides.
        """
        self._ending = ending
        self.text = ""
        self.stopped_by: str | None = None
        self.num_tokens = 0
        self._tokenizer = tokenizer
        self._stops = [stop for stop in (*stops, *ending.stops) if stop]
        self._longest = max(map(len, self._stops), default=0)
        # Only the tokens from `_anchor` on are decoded again; those before `_read` have been read.
        self._tokens = list(prompt)
        self._anchor, self._read = 0, len(self._tokens)

    def add(self, token: int) -> None:
        """Appends a token; does nothing after a stop string."""
        if self.stopped_by is not None:
            return
        self.num_tokens += 1
        if token in self._ending.tokens:
            self.finish()
            if self.stopped_by is None:
                self.text = self.text.removesuffix(self._ending.trimmed)
                self.stopped_by = self._decoded([token])
            return
        self._tokens.append(token)
        self._extend(is_last=False)

    def finish(self) -> None:
        """Ends the text; an incomplete character becomes U+FFFD."""
        if self.stopped_by is None:
            self._extend(is_last=True)

    @property
    def settled(self) -> str:
        """The text without a suffix that may be the beginning of a stop string, or no part of the text."""
        if self.stopped_by is None:
            trimmed = self._ending.trimmed
            for length in range(min(max(self._longest - 1, len(trimmed)), len(self.text)), 0, -1):
                end = self.text[-length:]
                if any(stop.startswith(end) for stop in (*self._stops, trimmed)):
                    return self.text[:-length]
        return self.text

    def _decoded(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(np.array(tokens, dtype=np.int64))

    def _extend(self, is_last: bool) -> None:
        known = self._decoded(self._tokens[self._anchor : self._read])
        decoded = self._decoded(self._tokens[self._anchor :])
        if decoded.endswith(_NOT_WHOLE) and not is_last:
            return
        searched = max(len(self.text) - self._longest + 1, 0)
        self.text += decoded[len(known) :]
        self._tokens = self._tokens[self._read :]
        self._anchor, self._read = 0, len(self._tokens)
        found = [(start, stop) for stop in self._stops if (start := self.text.find(stop, searched)) >= 0]
        if found:
            start, self.stopped_by = min(found)
            self.text = self.text[:start]


class Continuation(NamedTuple):
    """A generated text.

    Attributes:
        text: The text, without the stop string.
        num_tokens: Number of sampled tokens.
        stopped_by: The stop string that ended the text; None at the maximum length.
    """

    text: str
    num_tokens: int
    stopped_by: str | None


def continue_texts(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    sampler: Sampler,
    seed: int = 0,
    *,
    stops: Sequence[str] = (),
    ending: Ending = NO_ENDING,
    show: Callable[[int, str], None] | None = None,
    shared: Callable[[Tensor], Tensor] | None = None,
) -> list[Continuation]:
    """Generates a continuation of each prompt.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Decodes the tokens.
        prompts: The tokens of each prompt.
        num_tokens: Maximum number of new tokens per prompt.
        sampler: Samples a token from the logits.
        seed: Seed of the sampler.
        stops: Stop strings.
        ending: What ends a text besides: the separator of documents, or the end of an answer.
        show: Called with the index of a prompt and its text so far, without a possible beginning of a stop string.
        shared: As in `ml.models.generation.generate`, where several processes generate together.

    Returns:
        A continuation for each prompt, in order.

    Raises:
        ValueError: There is no prompt, a prompt is empty, or the learned positions of the model are exceeded.
    """
    texts = [StreamedText(tokenizer, prompt, stops, ending) for prompt in prompts]
    steps = generate(model, prompts, num_tokens, sampler, seed, num_choices=tokenizer.vocab_size, shared=shared)
    for tokens in steps:
        for row, token in enumerate(tokens.tolist()):
            texts[row].add(token)
            if show is not None:
                show(row, texts[row].settled)
        if all(text.stopped_by is not None for text in texts):
            break
    for text in texts:
        text.finish()
    return [Continuation(text.text, text.num_tokens, text.stopped_by) for text in texts]


class EncodedPrompts(NamedTuple):
    """Prompts as a model reads them.

    Attributes:
        tokens: The tokens of each prompt.
        ending: What ends the texts after them.
    """

    tokens: list[list[int]]
    ending: Ending


def encode_prompts(prompts: Sequence[str | Chat], data: Data) -> EncodedPrompts:
    """Encodes texts to continue, or conversations to answer with the tokens of training.

    Args:
        prompts: The prompts, all of one kind.
        data: The data of the run.

    Raises:
        ValueError: A prompt cannot be encoded, or the data has no chat template.
    """
    chats = [prompt for prompt in prompts if isinstance(prompt, Chat)]
    if not chats:
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        return EncodedPrompts([encode_prompt(text, data.tokenizer, data.begin) for text in texts], data.ending)
    if len(chats) < len(prompts):
        raise ValueError("prompts must be texts or conversations, not both")
    if data.chat is None:
        raise ValueError("the data of the run has no chat template: it was not trained on conversations (ChatData)")
    return EncodedPrompts([data.chat.prompt(chat).tolist() for chat in chats], data.chat.ending)


def encode_prompt(text: str, tokenizer: Tokenizer, begin: Begin) -> list[int]:
    """Encodes a prompt; an empty prompt is the start of a document, and any prompt is if documents have a begin token.

    Args:
        text: The prompt.
        tokenizer: Encodes it.
        begin: The begin of documents.

    Returns:
        The tokens of the prompt.

    Raises:
        ValueError: There is neither text nor a begin of documents, or the text cannot be encoded as UTF-8.
    """
    if not text and len(begin.tokens):
        return begin.tokens.tolist()
    if not text:
        raise ValueError("the prompt is empty, and the data of the run has no separator or begin token to start from")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"the prompt is not UTF-8 (character {error.start})") from None
    return begin.before(tokenizer.encode(text)).tolist()
