"""Tokens of conversations: the same for training, generation and benchmarks."""

import functools
import hashlib
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ml.data.chat.messages import Completion, Conversation
from ml.data.chat.template import Chat, ChatTemplate, Segment
from ml.data.errors import DataError
from ml.data.sequences.document_begin import Begin
from ml.data.sequences.document_separator import Separator
from ml.data.sequences.ending import Ending
from ml.data.tokenizers import Tokenizer


class Example(NamedTuple):
    """Tokenized conversation.

    Attributes:
        name: Hash of the tokens, which decides whether the example is held out.
        tokens: (tokens,).
        is_target: Marks the tokens to predict, (tokens,) bool.
    """

    name: str
    tokens: np.ndarray
    is_target: np.ndarray


class ChatFormat:
    """A template with the tokenizer, the separator and the begin of the data.

    Args:
        template: Template that renders messages.
        tokenizer: Tokenizer of the text.
        separator: Separator after each conversation.
        begin: Begin of each conversation.
    """

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer, separator: Separator, begin: Begin):
        self.template = template
        self.tokenizer = tokenizer
        self.separator = separator
        self.begin = begin

    def example(self, conversation: Conversation) -> Example:
        """Tokenizes a conversation and marks its targets.

        Raises:
            DataError: The template cannot render it.
        """
        tokens, is_target = self._encoded(self._segments(conversation))
        name = hashlib.sha256(tokens.astype(np.uint32).tobytes()).hexdigest()
        is_whole = self.template.writes_documents and not isinstance(conversation.content, Completion)
        begun = tokens if is_whole else self.begin.before(tokens)
        padding = np.zeros(len(begun) - len(tokens), dtype=bool)
        return Example(name, begun, np.concatenate((padding, is_target)))

    def prompt(self, chat: Chat) -> np.ndarray:
        """Tokenizes messages up to the position from which the assistant answers.

        If the last message is the assistant's, the answer continues its text.

        Raises:
            DataError: There is no message, or the template cannot render them.
        """
        if not chat.messages:
            raise DataError("there is no message to answer")
        self.template.check(chat, self.tokenizer)
        tokens = self._encoded(self.template.prompt(chat, self.tokenizer))[0]
        return tokens if self.template.writes_documents else self.begin.before(tokens)

    def answer(self, text: str) -> np.ndarray:
        """Tokenizes the text of an answer, which follows a prompt."""
        return self._tokens(Segment(text, True), is_first=False)

    @functools.cached_property
    def ending(self) -> Ending:
        """End of an answer: the first token that the template writes after its text, or else the text up to there."""
        ends = {end for end in (self.separator.token, self.tokenizer.end_of_document) if end is not None}
        text = ""
        for segment in self.template.end(self.tokenizer):
            token = self._token(segment)
            if token is not None:
                return Ending(frozenset({*ends, token}), (), text)
            text += self.separator.text if segment.kind == "separator" else segment.text
        return Ending(frozenset(ends), (text,) if text else (), "")

    def _segments(self, conversation: Conversation) -> list[Segment]:
        content = conversation.content
        if isinstance(content, Completion):
            return [Segment(content.prompt, False), Segment(content.completion, True), Segment("", True, "separator")]
        chat = Chat(content, conversation.tools)
        self.template.check(chat, self.tokenizer)
        segments = self.template.segments(chat, self.tokenizer)
        if self.template.writes_documents or (segments and segments[-1].kind == "separator"):
            return segments
        is_answer = len(content) > 0 and content[-1].is_target
        return [*segments, Segment("", is_answer, "separator")]

    def _encoded(self, segments: Sequence[Segment]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the tokens of segments and the mask of targets."""
        tokens, masks = [np.zeros(0, dtype=np.uint8)], [np.zeros(0, dtype=bool)]
        groups = itertools.groupby(enumerate(_group_numbers(segments)), key=lambda pair: pair[1])
        for _, members in groups:
            parts = [segments[index] for index, _ in members]
            found, mask = self._of_group(parts, is_first=len(tokens) == 1)
            tokens.append(found)
            masks.append(mask)
        return np.concatenate(tokens), np.concatenate(masks)

    def _of_group(self, parts: list[Segment], is_first: bool) -> tuple[np.ndarray, np.ndarray]:
        if len(parts) == 1:
            tokens = self._tokens(parts[0], is_first)
            return tokens, np.full(len(tokens), parts[0].is_target)
        spans = self.tokenizer.encode_with_spans("".join(part.text for part in parts), is_first)
        if spans is None:
            encoded = [self._of_group([part], is_first and index == 0) for index, part in enumerate(parts)]
            return np.concatenate([one for one, _ in encoded]), np.concatenate([one for _, one in encoded])
        is_target = np.repeat([part.is_target for part in parts], [len(part.text) for part in parts])
        before = np.concatenate(([0], np.cumsum(is_target)))
        return spans.tokens, before[spans.ends] > before[spans.starts]

    def _tokens(self, segment: Segment, is_first: bool) -> np.ndarray:
        if segment.kind == "separator":
            return self.separator.tokens
        token = self._token(segment)
        if token is not None:
            return np.array([token], dtype=np.uint32)
        spans = None if is_first else self.tokenizer.encode_with_spans(segment.text, False)
        tokens = self.tokenizer.encode(segment.text) if spans is None else spans.tokens
        if self.tokenizer.end_of_document is not None and (tokens == self.tokenizer.end_of_document).any():
            raise DataError("a text contains the token that ends documents")
        return tokens

    def _token(self, segment: Segment) -> int | None:
        """Returns the special token of a segment; None if it has none."""
        if segment.kind == "separator":
            return self.separator.token
        return self.tokenizer.special_token(segment.text) if segment.kind == "marker" else None


def _group_numbers(segments: Sequence[Segment]) -> list[int]:
    """Returns the number of the group of each segment: joined segments have that of the segment before."""
    return list(itertools.accumulate(not segment.is_joined for segment in segments))
