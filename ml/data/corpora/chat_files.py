"""Conversations in files."""

import abc
from collections.abc import Iterator

from ml.config import REQUIRED, configurable
from ml.data.chat.forms import conversation_of
from ml.data.chat.messages import Conversation
from ml.data.corpora.message_files import MessageFiles
from ml.data.reading.options import OnError


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
class ChatFiles(MessageFiles, ChatCorpus):
    """Conversations in files, one a row, in any of these forms, which may be mixed:

        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
        {"prompt": "2 + 2 =", "completion": " 4"}
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}
        {"instruction": "Add.", "input": "2 and 2", "output": "4"}

    `tools` describes the tools of a conversation; `"weight": 0` or `"train": false` in a message of the assistant makes
    it no target. Other keys of a conversation are ignored; those of a message must be known to the template.

    Formats are those of `TextFiles`: JSON lines, JSON arrays, CSV and TSV with a header, Parquet, Arrow, and folders of
    the library `datasets`. Files may be compressed (.gz, .bz2, .xz, .zst).

    Args:
        paths: File, folder, or list of them; folders are searched recursively, hidden files are skipped.
        pattern: Glob that file names in folders must match, such as "*.jsonl".
        on_error: Handling of an invalid row, and of a conversation that the template cannot render: "stop" raises an
            error, "skip" omits it and logs how many there were.
        ignored_keys: Keys of messages that are not used, such as 'id'; None for none.
    """

    NAME = "ChatFiles"
    KEYS = frozenset({"weight", "train"})

    def __init__(
        self,
        paths: str | list[str] = REQUIRED,
        pattern: str = "*",
        on_error: OnError = "stop",
        ignored_keys: list[str] | None = None,
    ):
        super().__init__(paths, pattern, on_error, ignored_keys)

    def conversations(self) -> Iterator[Conversation]:
        """Yields the conversations of all rows; files are sorted by name within each path.

        Raises:
            DataError: A file cannot be read, or a row is invalid.
        """
        for place, conversation in self.rows(conversation_of):
            yield conversation._replace(place=place)
