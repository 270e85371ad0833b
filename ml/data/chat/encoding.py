"""Tokens of conversations: the same for training, generation and benchmarks."""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ml.data.chat.messages import Completion, Conversation
from ml.data.chat.template import Chat, ChatTemplate, Segment
from ml.data.errors import DataError
from ml.data.sequences.document_begin import Begin
from ml.data.sequences.document_separator import Separator
from ml.data.sequences.ending import Ending
from ml.data.tokenizers import Tokenizer

_NOTHING = np.zeros(0, dtype=np.uint8)
_NUM_KNOWN = 1024  # texts
_SHORT = 16  # characters


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


class Encoded(NamedTuple):
    """Tokens of rendered segments.

    Attributes:
        tokens: (tokens,).
        is_target: Marks the tokens to predict, (tokens,) bool.
        problem: Reason that the segments cannot be used; None if they can.
    """

    tokens: np.ndarray
    is_target: np.ndarray
    problem: str | None = None


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
        self._known: dict[tuple[str, bool], np.ndarray] = {}  # tokens of short texts, which repeat

    def example(self, conversation: Conversation) -> Example:
        """Tokenizes a conversation and marks its targets.

        Raises:
            DataError: The template cannot render it.
        """
        (found,) = self.examples([conversation])
        if isinstance(found, DataError):
            raise found
        return found

    def examples(self, conversations: Sequence[Conversation]) -> list[Example | DataError]:
        """Tokenizes conversations at once and marks their targets; one that cannot be rendered becomes its error."""
        rendered = [self._rendered(conversation) for conversation in conversations]
        encoded = iter(self._encoded([segments for segments in rendered if not isinstance(segments, DataError)]))
        return [
            segments if isinstance(segments, DataError) else self._example(conversation, next(encoded))
            for conversation, segments in zip(conversations, rendered, strict=True)
        ]

    def _example(self, conversation: Conversation, encoded: Encoded) -> Example | DataError:
        if encoded.problem is not None:
            return DataError(encoded.problem)
        tokens = encoded.tokens
        name = hashlib.sha256(tokens.astype(np.uint32).tobytes()).hexdigest()
        is_whole = self.template.writes_documents and not isinstance(conversation.content, Completion)
        begun = tokens if is_whole else self.begin.before(tokens)
        padding = np.zeros(len(begun) - len(tokens), dtype=bool)
        return Example(name, begun, np.concatenate((padding, encoded.is_target)))

    def _rendered(self, conversation: Conversation) -> list[Segment] | DataError:
        try:
            return self._segments(conversation)
        except DataError as error:
            return error

    def prompt(self, chat: Chat) -> np.ndarray:
        """Tokenizes messages up to the position from which the assistant answers.

        If the last message is the assistant's, the answer continues its text.

        Raises:
            DataError: There is no message, or the template cannot render them.
        """
        if not chat.messages:
            raise DataError("there is no message to answer")
        self.template.check(chat, self.tokenizer)
        (encoded,) = self._encoded([self.template.prompt(chat, self.tokenizer)])
        if encoded.problem is not None:
            raise DataError(encoded.problem)
        tokens = encoded.tokens
        return tokens if self.template.writes_documents else self.begin.before(tokens)

    def answer(self, text: str) -> np.ndarray:
        """Tokenizes the text of an answer, which follows a prompt."""
        return self.tokenizer.encode_parts([(text, False)])[0]

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

    def jinja(self) -> str | None:
        """Returns the template in Jinja with the begin of documents before it; None if there is no such form."""
        source = self.template.jinja(self.tokenizer)
        if source is None or self.template.writes_documents or not len(self.begin.tokens):
            return source
        names = {token.id: name for name, token in self.tokenizer.control_tokens.items()}
        begin = [names.get(token) for token in self.begin.tokens.tolist()]
        return None if None in begin else f"{{{{- {''.join(map(str, begin))!r} }}}}\n{source}"

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

    def _encoded(self, rendered: Sequence[list[Segment]]) -> list[Encoded]:
        """Tokenizes the segments of conversations, the texts of all at once."""
        groups = [_grouped(segments) for segments in rendered]
        parts = [self._part(group, index == 0) for one in groups for index, group in enumerate(one)]
        unknown = list(dict.fromkeys(part for part in parts if part is not None and part not in self._known))
        found = dict(zip(unknown, self.tokenizer.encode_parts(unknown), strict=True))
        texts = iter([None if part is None else found.get(part, self._known.get(part)) for part in parts])
        if len(self._known) < _NUM_KNOWN:
            self._known.update({part: tokens for part, tokens in found.items() if len(part[0]) <= _SHORT})
        return [self._of_groups(one, texts) for one in groups]

    def _part(self, group: list[Segment], is_first: bool) -> tuple[str, bool] | None:
        """Returns the text of a group of one and whether it starts a document; None for a token or several texts."""
        is_text = len(group) == 1 and group[0].kind != "separator" and self._token(group[0]) is None
        return (group[0].text, is_first) if is_text else None

    def _of_groups(self, groups: list[list[Segment]], texts: Iterator[np.ndarray | None]) -> Encoded:
        """Returns the tokens of a conversation; those of each group of one text come from `texts`."""
        tokens, joined, length = [_NOTHING], [], 0
        for index, group in enumerate(groups):
            found = next(texts)
            if found is None and len(group) > 1:
                found, mask = self._joined(group, index == 0)
                joined.append((length, mask))
            elif found is None:
                token = None if group[0].kind == "separator" else self._token(group[0])
                found = self.separator.tokens if token is None else np.array([token], dtype=np.uint32)
            tokens.append(found)
            length += len(found)
        sizes = [len(part) for part in tokens]
        is_target = np.repeat([False, *(group[0].is_target for group in groups)], sizes)
        for start, mask in joined:
            is_target[start : start + len(mask)] = mask
        return Encoded(np.concatenate(tokens), is_target, self._problem(groups, tokens[1:]))

    def _problem(self, groups: list[list[Segment]], tokens: list[np.ndarray]) -> str | None:
        end = self.tokenizer.end_of_document
        if end is None or end in self._special_ids:  # which no text contains
            return None
        is_inside = any(group[0].kind == "text" and end in part for group, part in zip(groups, tokens, strict=True))
        return "a text contains the token that ends documents" if is_inside else None

    @functools.cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(token.id for token in self.tokenizer.control_tokens.values())

    def _joined(self, parts: list[Segment], is_first: bool) -> tuple[np.ndarray, np.ndarray]:
        """Returns the tokens and the mask of texts that are encoded as one."""
        spans = self.tokenizer.encode_with_spans("".join(part.text for part in parts), is_first)
        if spans is None:
            encoded = self.tokenizer.encode_parts([(part.text, is_first and part is parts[0]) for part in parts])
            sizes = [len(tokens) for tokens in encoded]
            return np.concatenate(encoded), np.repeat([part.is_target for part in parts], sizes)
        is_target = np.repeat([part.is_target for part in parts], [len(part.text) for part in parts])
        before = np.concatenate(([0], np.cumsum(is_target)))
        return spans.tokens, before[spans.ends] > before[spans.starts]

    def _token(self, segment: Segment) -> int | None:
        """Returns the special token of a segment; None if it has none."""
        if segment.kind == "separator":
            return self.separator.token
        return self.tokenizer.special_token(segment.text) if segment.kind == "marker" else None


def _grouped(segments: list[Segment]) -> list[list[Segment]]:
    """Returns the segments, those that are encoded as one together."""
    groups: list[list[Segment]] = []
    for segment in segments:
        if segment.is_joined:
            groups[-1].append(segment)
        else:
            groups.append([segment])
    return groups
