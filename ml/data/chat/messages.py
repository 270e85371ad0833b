"""Conversations as they are read, with everything that the JSON object of a message holds."""

from typing import Any, NamedTuple

ASSISTANT = "assistant"


class Message(NamedTuple):
    """Message of one participant.

    Attributes:
        role: Participant: "system", "user", "assistant", "tool", or another that the template knows.
        fields: JSON object of the message, with `role`, `content` (a text, or a list of parts) and any other key, such
            as `tool_calls` or `reasoning_content`.
        is_trained: False for a message of the assistant that is no target (`"weight": 0`, `"train": false`).
    """

    role: str
    fields: dict[str, Any]
    is_trained: bool = True

    @property
    def is_target(self) -> bool:
        """True for a message of the assistant that is trained."""
        return self.role == ASSISTANT and self.is_trained


class Completion(NamedTuple):
    """Prompt and its completion.

    Attributes:
        prompt: Text that is given.
        completion: Text that follows it.
    """

    prompt: str
    completion: str


class Conversation(NamedTuple):
    """Conversation and its location.

    Attributes:
        place: File and line, for errors.
        content: Messages, or a prompt with its completion.
        tools: Descriptions of the tools that the assistant can call, as JSON values; None for none.
    """

    place: str
    content: tuple[Message, ...] | Completion
    tools: list[Any] | None = None


def is_empty(value: Any) -> bool:
    """Returns True for a JSON value without content: null, or an empty text, list or object."""
    return value is None or value == "" or value == [] or value == {}
