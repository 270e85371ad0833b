"""Chat templates: conversations rendered as text, with the targets marked."""

import abc
from typing import NamedTuple

from ml.config import configurable
from ml.data.corpora.chat_files import ASSISTANT, Message
from ml.data.errors import DataError


class Segment(NamedTuple):
    """Text that is encoded separately, so that targets begin and end at token boundaries.

    Attributes:
        text: The text.
        is_target: True for text that is to be predicted.
        is_marker: True for text that is encoded as the special token of this name, if the tokenizer has one.
    """

    text: str
    is_target: bool
    is_marker: bool = False


class ChatTemplate(abc.ABC):
    """Renders messages as text.

    Attributes:
        writes_begin: True if the template decides how a conversation begins, so that no begin-of-document token is
            inserted before it.
    """

    writes_begin = False

    @abc.abstractmethod
    def segments(self, messages: tuple[Message, ...]) -> list[Segment]:
        """Renders a conversation; targets are the assistant's messages and their ends.

        Raises:
            DataError: A role is unknown.
        """


@configurable
class RoleMarkers(ChatTemplate):
    """Plain text markers before each message: "User: Hi", "Assistant: Hello!", one message a line.

    Args:
        system: Marker before a message of the system.
        user: Marker before a message of the user.
        assistant: Marker before a message of the assistant; it is not a target.
        end: Text after each message; a target after the assistant's.
    """

    def __init__(
        self,
        system: str = "System: ",
        user: str = "User: ",
        assistant: str = "Assistant: ",
        end: str = "\n",
    ):
        self.markers = {"system": system, "user": user, ASSISTANT: assistant}
        self.end = end

    def segments(self, messages: tuple[Message, ...]) -> list[Segment]:
        made = []
        for role, content in messages:
            if role not in self.markers:
                raise DataError(f"RoleMarkers has no role {role!r}, only {', '.join(self.markers)}")
            made += [Segment(self.markers[role], False), Segment(content + self.end, role == ASSISTANT)]
        return made


@configurable
class ChatML(ChatTemplate):
    """<|im_start|>role, a line break, the message, <|im_end|> and a line break; any role.

    The markers are special tokens if the tokenizer has tokens of these names, otherwise ordinary text. The same text
    inside a message is always ordinary text.
    """

    def segments(self, messages: tuple[Message, ...]) -> list[Segment]:
        made = []
        for role, content in messages:
            is_target = role == ASSISTANT
            made += [
                Segment("<|im_start|>", False, is_marker=True),
                Segment(f"{role}\n", False),
                Segment(content, is_target),
                Segment("<|im_end|>", is_target, is_marker=True),
                Segment("\n", False),
            ]
        return made
