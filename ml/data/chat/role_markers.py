"""Plain text before each message."""

from ml.config import configurable
from ml.data.chat.messages import ASSISTANT, Message
from ml.data.chat.template import Chat, ChatTemplate, Segment, text_of
from ml.data.errors import DataError
from ml.data.tokenizers import Tokenizer


@configurable
class RoleMarkers(ChatTemplate):
    """Plain text markers before each message: "User: Hi", "Assistant: Hello!", one message a line.

    The separator of the data ends each message of the assistant, so that an answer of several lines ends at its last.

    Args:
        system: Marker before a message of the system.
        user: Marker before a message of the user.
        assistant: Marker before a message of the assistant; it is not a target.
        end: Text after each message; a target after the assistant's.
        separate_turns: True ends every message of the assistant with the separator of the data; False only one that
            ends the conversation.
    """

    def __init__(
        self,
        system: str = "System: ",
        user: str = "User: ",
        assistant: str = "Assistant: ",
        end: str = "\n",
        separate_turns: bool = True,
    ):
        self.markers = {"system": system, "user": user, ASSISTANT: assistant}
        self.text_end = end
        self.separate_turns = separate_turns

    def segments(self, chat: Chat, tokenizer: Tokenizer) -> list[Segment]:
        return [segment for message in chat.messages for segment in self._message(message)]

    def prompt(self, chat: Chat, tokenizer: Tokenizer) -> list[Segment]:
        *before, last = chat.messages
        if last.role == ASSISTANT:
            given = self.segments(chat._replace(messages=tuple(before)), tokenizer)
            return [*given, Segment(self.markers[ASSISTANT], False), Segment(text_of(last), False)]
        return [*self.segments(chat, tokenizer), Segment(self.markers[ASSISTANT], False)]

    def end(self, tokenizer: Tokenizer) -> list[Segment]:
        return [Segment(self.text_end, True), Segment("", True, "separator")]

    def reads(self, key: str, tokenizer: Tokenizer) -> bool:
        return False

    def _message(self, message: Message) -> list[Segment]:
        if message.role not in self.markers:
            raise DataError(f"RoleMarkers has no role {message.role!r}, only {', '.join(self.markers)}")
        made = [
            Segment(self.markers[message.role], False),
            Segment(text_of(message) + self.text_end, message.is_target),
        ]
        if message.role == ASSISTANT and self.separate_turns:
            made.append(Segment("", message.is_target, "separator"))
        return made
