"""Conversations, and the files that they lie in."""

import abc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ml.config import REQUIRED, configurable, require
from ml.data.reading.decoding import SURROGATE
from ml.data.reading.json_lines import BrokenLine, OnError, read_records

ASSISTANT = "assistant"


class Message(NamedTuple):
    """What one side says; the role is "system", "user", "assistant" or another that the template knows."""

    role: str
    content: str


class Completion(NamedTuple):
    """A text, and how it goes on."""

    prompt: str
    completion: str


class Conversation(NamedTuple):
    """What is said, and the file and line where it stands."""

    place: str
    said: tuple[Message, ...] | Completion


class ChatCorpus(abc.ABC):
    """Yields conversations, in the same order each time."""

    @abc.abstractmethod
    def conversations(self) -> Iterator[Conversation]:
        """All of them; reading may fail only here."""


@configurable
class ChatFiles(ChatCorpus):
    """Files of JSON lines, a conversation each, in either of two forms, also mixed:

        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
        {"prompt": "2 + 2 =", "completion": " 4"}

    Other keys of an object are ignored. Files may be compressed (.gz, .bz2, .xz, .zst).

    Args:
        paths: A file, or a list of them.
        on_error: Whether a line that is not one of these stops the reading or is skipped; skipped ones are counted.
    """

    def __init__(self, paths: str | list[str] = REQUIRED, on_error: OnError = "stop"):
        require(len(paths) > 0, "paths", "names nothing to read")
        self.paths = [paths] if isinstance(paths, str) else paths
        self.on_error = on_error

    def conversations(self) -> Iterator[Conversation]:
        """All lines in order.

        Raises:
            DataError: A file cannot be read, or a line is broken.
        """
        for path in self.paths:
            for place, said in read_records(Path(path), parsed, self.on_error, "ChatFiles.on_error"):
                yield Conversation(place, said)


def parsed(record: Any) -> tuple[Message, ...] | Completion:
    """What is said in an object of JSON.

    Raises:
        BrokenLine: It holds none, or more than one.
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
        raise BrokenLine(f"{key!r} holds half of a surrogate pair, which is no text")
    return text
