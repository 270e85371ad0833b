"""Preferences in files."""

import abc
from collections.abc import Iterator

from ml.config import REQUIRED, configurable
from ml.data.chat.preferences import Preference, preference_of
from ml.data.corpora.message_files import MessageFiles
from ml.data.reading.options import OnError


class PreferenceCorpus(abc.ABC):
    """Source of preferences, in a fixed order.

    Attributes:
        on_error: Handling of a preference that the template cannot render: "stop" raises an error, "skip" omits it.
    """

    on_error: OnError = "stop"

    @abc.abstractmethod
    def preferences(self) -> Iterator[Preference]:
        """Yields all preferences. The corpus is read here, not in the constructor."""


@configurable
class PreferenceFiles(MessageFiles, PreferenceCorpus):
    """Preferences in files, one a row, in any of these forms, which may be mixed:

        {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}
        {"prompt": [MESSAGES], "chosen": [MESSAGES], "rejected": [MESSAGES]}
        {"chosen": [MESSAGES], "rejected": [MESSAGES]}

    MESSAGES are objects {"role", "content"}. Without a prompt, it is what both sides begin with. Files and formats are
    those of `ChatFiles`.

    Args:
        paths: File, folder, or list of them; folders are searched recursively, hidden files are skipped.
        pattern: Glob that file names in folders must match, such as "*.jsonl".
        on_error: Handling of an invalid row, and of messages that the template cannot render: "stop" raises an error,
            "skip" omits it and logs how many there were.
        ignored_keys: Keys of messages that are not used, such as 'id'; None for none.
    """

    NAME = "PreferenceFiles"

    def __init__(
        self,
        paths: str | list[str] = REQUIRED,
        pattern: str = "*",
        on_error: OnError = "stop",
        ignored_keys: list[str] | None = None,
    ):
        super().__init__(paths, pattern, on_error, ignored_keys)

    def preferences(self) -> Iterator[Preference]:
        """Yields the preferences of all rows; files are sorted by name within each path.

        Raises:
            DataError: A file cannot be read, or a row is invalid.
        """
        for place, preference in self.rows(preference_of):
            yield preference._replace(place=place)
