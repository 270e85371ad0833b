"""Rendering of one conversation by a Jinja template: its text, special tokens and targets."""

import itertools
import json
import os.path
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from ml.data.chat.control_text import ControlText, Mask
from ml.data.chat.jinja_environment import BEGIN, END, CompiledTemplate
from ml.data.chat.messages import ASSISTANT, Message
from ml.data.chat.template import Chat, Segment, text_of
from ml.data.errors import DataError

_MARKS = re.compile(f"([{BEGIN}{END}])")
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys of a message for the same thing; a template gets all of them."""


class Rendered(NamedTuple):
    """Rendered conversation.

    Attributes:
        text: The text, in which the names of special tokens in messages are masked.
        answers: Start and end of each `{% generation %}` block.
    """

    text: str
    answers: list[tuple[int, int]]


class Renderer:
    """Renders a conversation and its beginnings.

    Args:
        template: The template.
        chat: The conversation.
        variables: Further variables of the template.
        control: Names of the special tokens.

    Raises:
        DataError: The conversation cannot be given to the template.
    """

    def __init__(self, template: CompiledTemplate, chat: Chat, variables: dict[str, Any], control: ControlText):
        self._template = template
        self._control = control
        self._variables = variables
        self._messages = chat.messages
        self._raw = [self._fields(message) for message in chat.messages]
        self._tools = chat.tools
        self._is_hostile = control.is_in(self._raw) or control.is_in(chat.tools)
        self._mask = Mask(json.dumps([self._raw, chat.tools], ensure_ascii=False)) if self._is_hostile else Mask("")

    def segments(self, is_trained: bool = True) -> list[Segment]:
        """Returns the segments of the whole conversation."""
        rendered = self.render(len(self._raw))
        if not is_trained:
            return self._split(rendered.text, [])
        marks = self._template.marks_answers
        return self._split(rendered.text, self._marked(rendered) if marks else self._differences(rendered))

    def prompt(self) -> list[Segment]:
        """Returns the segments up to the position from which the assistant answers."""
        return self._split(self.render(len(self._raw), is_asked=True).text, [])

    def around(self, text: str) -> tuple[list[Segment], list[Segment]]:
        """Returns the segments before and after a text in the whole conversation.

        Raises:
            DataError: The template does not render it.
        """
        before, found, after = self.render(len(self._raw)).text.partition(text)
        if not found:
            raise DataError("the chat template does not render the text of the assistant's last message")
        return self._split(before, []), self._split(after, [])

    def render(self, count: int, is_asked: bool = False) -> Rendered:
        """Renders the first messages.

        Args:
            count: Their number.
            is_asked: True adds what the template writes before an answer.

        Raises:
            DataError: The template fails, or the names of special tokens in messages cannot be followed through it.
        """
        plain = self._run(self._raw[:count], self._tools, is_asked)
        if not self._is_hostile:
            return _without_marks(plain)
        in_answers = self._control.names & self._template.read_texts
        for kept in ((), in_answers) if in_answers else ((),):
            masked = [self._masked(fields, kept if fields["role"] == ASSISTANT else ()) for fields in self._raw[:count]]
            text = self._run(masked, self._control.masked(self._tools, self._mask), is_asked)
            if self._mask.undone(text) == plain:
                return _without_marks(text)
        raise DataError(
            "the chat template reads the name of a special token in the text of a message, so that text and token "
            "cannot be distinguished"
        )

    def _run(self, messages: list[dict[str, Any]], tools: list[Any] | None, is_asked: bool) -> str:
        try:
            return self._template.render(
                messages=messages, tools=tools, documents=None, add_generation_prompt=is_asked, **self._variables
            )
        except Exception as error:  # a template can fail in any way
            raise DataError(f"the chat template fails: {error or type(error).__name__}") from error

    def _fields(self, message: Message) -> dict[str, Any]:
        """Returns the message as a template gets it: without nulls, and as text if it takes no parts."""
        if self._control.names_in(message.role):
            raise DataError(f"the role {message.role!r} contains the name of a special token")
        fields = {key: value for key, value in message.fields.items() if value is not None}
        if isinstance(fields.get("content"), list) and "text" not in self._template.names:
            fields["content"] = text_of(message)
        reasoning = next((fields[key] for key in REASONING if key in fields), None)
        if reasoning is None:
            return fields
        return {"thinking": reasoning, **fields, "reasoning_content": reasoning}

    def _masked(self, fields: dict[str, Any], kept: Sequence[str] | frozenset[str]) -> dict[str, Any]:
        return {**self._control.masked(fields, self._mask, kept), "role": fields["role"]}

    def _marked(self, rendered: Rendered) -> list[tuple[int, int]]:
        """Returns the generation blocks of trained messages."""
        if all(message.is_trained for message in self._messages):
            return rendered.answers
        chosen = []
        for index, message in enumerate(self._messages):
            if message.is_target:  # the blocks that this message adds
                first = len(self.render(index).answers) if index else 0
                chosen += rendered.answers[first : len(self.render(index + 1).answers)]
        return chosen

    def _differences(self, rendered: Rendered) -> list[tuple[int, int]]:
        """Returns what each trained message of the assistant adds to the text."""
        found = []
        for index, message in enumerate(self._messages):
            if message.is_target:
                start = self.render(index, is_asked=True).text
                is_last = index + 1 == len(self._raw)
                end = rendered.text if is_last else self._shared(self.render(index + 1).text, rendered.text)
                if end is None or not end.startswith(start) or len(end) == len(start):
                    raise DataError(
                        f"the chat template has no {{% generation %}} blocks, and the text up to message {index + 1} "
                        "is not the beginning of the whole: put what the assistant writes into {% generation %} blocks"
                    )
                found.append((len(start), len(end)))
        return found

    def _shared(self, part: str, whole: str) -> str | None:
        """Returns the text of a part of a conversation without what the template writes at the end of any; None if the
        rest is not the beginning of the whole.
        """
        position = len(os.path.commonprefix((part, whole)))  # noqa: RUF071
        for text in (part, whole):  # a special token is shared or not
            inside = [token.start for token in self._control.find(text) if token.start < position < token.end]
            position = min([position, *inside])
        return part[:position] if whole.endswith(part[position:]) else None

    def _split(self, text: str, answers: list[tuple[int, int]]) -> list[Segment]:
        """Splits rendered text at special tokens and at the ends of answers."""
        made: list[Segment] = []
        position = 0
        for token in (*self._control.find(text), None):
            made += self._pieces(text, position, len(text) if token is None else token.start, answers)
            if token is not None:
                is_target = any(start < token.end and token.start < end for start, end in answers)
                made.append(Segment(token.text, is_target, "marker"))
                position = token.end
        return made

    def _pieces(self, text: str, start: int, end: int, answers: list[tuple[int, int]]) -> list[Segment]:
        """Returns the text between two special tokens, with a segment for each change of target."""
        inside = {bound for answer in answers for bound in answer if start < bound < end}
        made = []
        for first, last in itertools.pairwise(sorted({start, end} | inside)):
            is_target = any(begin <= first and last <= stop for begin, stop in answers)
            made.append(Segment(self._mask.undone(text[first:last]), is_target, is_joined=first > start))
        return made


def _without_marks(text: str) -> Rendered:
    """Removes the marks of generation blocks; a block within another is part of it."""
    parts: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    length = depth = 0
    for part in _MARKS.split(text):
        if part == BEGIN:
            starts += [] if depth else [length]
            depth += 1
        elif part == END:
            depth -= 1
            ends += [] if depth else [length]
        else:
            parts.append(part)
            length += len(part)
    return Rendered("".join(parts), list(zip(starts, ends, strict=True)))
