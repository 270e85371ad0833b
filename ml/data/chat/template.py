"""Contract of chat templates: conversations rendered as segments of text, with the targets marked."""

import abc
from typing import Any, Literal, NamedTuple

from ml.data.chat.messages import Message, is_empty
from ml.data.errors import DataError
from ml.data.tokenizers import Tokenizer


class Segment(NamedTuple):
    """Text that is encoded separately, so that targets begin and end at token boundaries.

    Attributes:
        text: The text.
        is_target: True for text that is to be predicted.
        kind: "marker" for text that is encoded as the special token of this name, if the tokenizer has one;
            "separator" for the separator of the data, whatever the text.
        is_joined: True for text that is encoded as one with the text before it, as far as the tokenizer relates tokens
            to characters. A token with characters of a target is a target.
    """

    text: str
    is_target: bool
    kind: Literal["text", "marker", "separator"] = "text"
    is_joined: bool = False


class Chat(NamedTuple):
    """Messages to render.

    Attributes:
        messages: The messages.
        tools: Descriptions of tools; None for none.
    """

    messages: tuple[Message, ...]
    tools: list[Any] | None = None


class ChatTemplate(abc.ABC):
    """Renders messages as segments: the same ones in training and at inference.

    Attributes:
        writes_documents: True if the rendered text is a whole document, with its own begin and end. Otherwise the data
            adds its begin token and its separator.
    """

    writes_documents: bool = False

    def load(self, tokenizer: Tokenizer) -> None:  # noqa: B027
        """Reads what the template needs, if it needs anything.

        Raises:
            DataError: It cannot be used, whatever the conversation.
        """

    @abc.abstractmethod
    def segments(self, chat: Chat, tokenizer: Tokenizer) -> list[Segment]:
        """Renders a conversation; targets are the trained messages of the assistant and their ends.

        Raises:
            DataError: A role is unknown, or something else cannot be rendered.
        """

    @abc.abstractmethod
    def prompt(self, chat: Chat, tokenizer: Tokenizer) -> list[Segment]:
        """Renders a conversation up to the position from which the assistant answers.

        If the last message is the assistant's, the answer continues its text.

        Raises:
            DataError: As for `segments`.
        """

    @abc.abstractmethod
    def end(self, tokenizer: Tokenizer) -> list[Segment]:
        """Returns the segments after the text of an answer."""

    @abc.abstractmethod
    def reads(self, key: str, tokenizer: Tokenizer) -> bool:
        """Returns True if the template renders this key of messages, or `tools`."""

    def jinja(self, tokenizer: Tokenizer) -> str | None:
        """Returns the template in Jinja, for other programs; None if it has no such form with the tokenizer."""
        return None

    def kept(self, tokenizer: Tokenizer) -> dict[str, Any] | None:
        """Returns what a run keeps of the template, as JSON values; None if its parameters are all of it.

        Raises:
            DataError: A file cannot be read.
        """
        return None

    def restore(self, kept: dict[str, Any], *, only_if_missing: bool) -> None:
        """Uses what a run kept.

        Args:
            kept: The value of `kept`.
            only_if_missing: True uses it only where the files of the template cannot be read.

        Raises:
            DataError: It is damaged.
        """
        raise DataError(f"{type(self).__name__} is not in files, and the run keeps a template")

    def check(self, chat: Chat, tokenizer: Tokenizer) -> None:
        """Checks that nothing of a conversation would be dropped.

        Raises:
            DataError: A key is not rendered.
        """
        name = type(self).__name__
        if chat.tools and not self.reads("tools", tokenizer):
            raise DataError(f"{name} does not render 'tools'")
        for message in chat.messages:
            for key, value in message.fields.items():
                if key not in ("role", "content") and not is_empty(value) and not self.reads(key, tokenizer):
                    raise DataError(
                        f"{name} does not render {key!r} of a message of the role {message.role!r}; "
                        "ChatFiles.ignored_keys skips keys"
                    )


def text_of(message: Message) -> str:
    """Returns the content of a message as text; parts of a list are joined.

    Raises:
        DataError: A part is not text.
    """
    content = message.fields.get("content")
    if not isinstance(content, list):
        return content or ""
    kinds = [part.get("type", "text") for part in content]
    if other := [kind for kind, part in zip(kinds, content, strict=True) if not _is_text(kind, part)]:
        raise DataError(f"the content of a message has a part of the type {other[0]!r}, which is not text")
    return "".join(part["text"] for part in content)


def _is_text(kind: Any, part: dict[str, Any]) -> bool:
    return kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str)
