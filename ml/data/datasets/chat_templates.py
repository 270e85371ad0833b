"""How a conversation becomes text, and which part of that is to be learned."""

import abc
from typing import NamedTuple

from ml.config import configurable
from ml.data.corpora.chat_files import ASSISTANT, Message
from ml.data.errors import DataError


class Segment(NamedTuple):
    """A part of a text that is encoded by itself, so that what is learned begins and ends between tokens."""

    text: str
    is_target: bool
    is_marker: bool = False  # stands for a special token, where the tokenizer has one of this name


class ChatTemplate(abc.ABC):
    """Writes messages as text."""

    @abc.abstractmethod
    def segments(self, messages: tuple[Message, ...]) -> list[Segment]:
        """The text of a conversation; targets are what the assistant says, and that it ends there.

        Raises:
            DataError: A role is not known.
        """


@configurable
class RoleMarkers(ChatTemplate):
    """A plain text before each message says whose it is: "User: Hi", "Assistant: Hello!", one below the other.

    Args:
        system: What stands before a message of this role.
        user: Likewise.
        assistant: Likewise; it is no target.
        end: What stands behind each message; what the assistant says ends with it.
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
                raise DataError(f"RoleMarkers knows no role {role!r}, only {', '.join(self.markers)}")
            made += [Segment(self.markers[role], False), Segment(content + self.end, role == ASSISTANT)]
        return made


@configurable
class ChatML(ChatTemplate):
    """<|im_start|>role, a line break, the message, <|im_end|> and a line break; any role.

    The markers are special tokens where the tokenizer has tokens of these names, else ordinary text. A message that
    holds such a text holds ordinary text in any case.
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
