"""Conversations in JSON lines files."""

import abc
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ml.config import REQUIRED, configurable, require
from ml.data.chat.forms import conversation_of
from ml.data.chat.messages import Conversation
from ml.data.reading.json_lines import OnError, read_records


class ChatCorpus(abc.ABC):
    """Source of conversations, in a fixed order.

    Attributes:
        on_error: Handling of a conversation that the template cannot render: "stop" raises an error, "skip" omits it.
    """

    on_error: OnError = "stop"

    @abc.abstractmethod
    def conversations(self) -> Iterator[Conversation]:
        """Yields all conversations. The corpus is read here, not in the constructor."""


@configurable
class ChatFiles(ChatCorpus):
    """Conversations in JSON lines files, one a line, in any of these forms, which may be mixed:

        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
        {"prompt": "2 + 2 =", "completion": " 4"}
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}
        {"instruction": "Add.", "input": "2 and 2", "output": "4"}

    `tools` describes the tools of a conversation; `"weight": 0` or `"train": false` in a message of the assistant makes
    it no target. Other keys of a conversation are ignored; those of a message must be known to the template. Files may
    be compressed (.gz, .bz2, .xz, .zst).

    Args:
        paths: File, or list of files.
        on_error: Handling of an invalid line, and of a conversation that the template cannot render: "stop" raises an
            error, "skip" omits it and logs how many there were.
        ignored_keys: Keys of messages that are not used, such as 'id'; None for none.
    """

    def __init__(
        self,
        paths: str | list[str] = REQUIRED,
        on_error: OnError = "stop",
        ignored_keys: list[str] | None = None,
    ):
        require(len(paths) > 0, "paths", "names nothing to read")
        used = {"role", "content", "weight", "train"} & set(ignored_keys or ())
        require(not used, "ignored_keys", f"cannot contain {', '.join(map(repr, sorted(used)))}")
        self.paths = [paths] if isinstance(paths, str) else paths
        self.on_error = on_error
        self.ignored_keys = frozenset(ignored_keys or ())

    def conversations(self) -> Iterator[Conversation]:
        """Yields the conversations of all lines, in order.

        Raises:
            DataError: A file cannot be read, or a line is invalid.
        """
        parse = partial(conversation_of, ignored_keys=self.ignored_keys)
        for path in self.paths:
            for place, conversation in read_records(Path(path), parse, self.on_error, "ChatFiles.on_error"):
                yield conversation._replace(place=place)
