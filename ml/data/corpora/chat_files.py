"""Conversations in JSON lines files."""

import abc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ml.config import REQUIRED, configurable, require
from ml.data.reading.decoding import SURROGATE
from ml.data.reading.json_lines import BrokenLine, OnError, read_records

ASSISTANT = "assistant"


class Message(NamedTuple):
    """Message of one participant.

    Attributes:
        role: Participant: "system", "user", "assistant", or another that the template knows.
        content: Text of the message.
    """

    role: str
    content: str


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
    """

    place: str
    content: tuple[Message, ...] | Completion


class ChatCorpus(abc.ABC):
    """Source of conversations, in a fixed order."""

    @abc.abstractmethod
    def conversations(self) -> Iterator[Conversation]:
        """Yields all conversations. The corpus is read here, not in the constructor."""


@configurable
class ChatFiles(ChatCorpus):
    """Conversations in JSON lines files, one a line, in either of two forms, which may be mixed:

        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
        {"prompt": "2 + 2 =", "completion": " 4"}

    Other keys of an object are ignored. Files may be compressed (.gz, .bz2, .xz, .zst).

    Args:
        paths: File, or list of files.
        on_error: Handling of an invalid line: "stop" raises an error, "skip" omits the line and logs how many there
            were.
    """

    def __init__(self, paths: str | list[str] = REQUIRED, on_error: OnError = "stop"):
        require(len(paths) > 0, "paths", "names nothing to read")
        self.paths = [paths] if isinstance(paths, str) else paths
        self.on_error = on_error

    def conversations(self) -> Iterator[Conversation]:
        """Yields the conversations of all lines, in order.

        Raises:
            DataError: A file cannot be read, or a line is invalid.
        """
        for path in self.paths:
            for place, content in read_records(Path(path), parsed, self.on_error, "ChatFiles.on_error"):
                yield Conversation(place, content)


def parsed(record: Any) -> tuple[Message, ...] | Completion:
    """Parses the JSON object of a line.

    Raises:
        BrokenLine: The object has neither of the two forms, or both.
    """
    if not isinstance(record, dict) or ("messages" in record) == ("prompt" in record or "completion" in record):
        raise BrokenLine('must be {"messages": [...]} or {"prompt": TEXT, "completion": TEXT}')
    if "messages" not in record:
        return Completion(_text(record, "prompt"), _text(record, "completion"))
    messages = record["messages"]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise BrokenLine('"messages" must be a list of {"role": TEXT, "content": TEXT}')
    return tuple(Message(_text(message, "role"), _text(message, "content")) for message in messages)


def _text(record: dict, key: str) -> str:
    text = record.get(key)
    if not isinstance(text, str):
        raise BrokenLine(f"{key!r} must be a text" if key in record else f"{key!r} is missing")
    if not text.isascii() and SURROGATE.search(text):
        raise BrokenLine(f"{key!r} contains a lone surrogate, which is not valid text")
    return text
