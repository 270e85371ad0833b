"""Tokenized conversations of a corpus."""

import collections
import contextlib
import itertools
import logging
from collections.abc import Iterable, Iterator

from ml.data.chat.encoding import ChatFormat, Example
from ml.data.chat.messages import Completion, Conversation
from ml.data.errors import DataError
from ml.data.reading.options import OnError

_AT_ONCE = 256  # conversations
logger = logging.getLogger(__name__)


def examples_of(conversations: Iterable[Conversation], chat: ChatFormat, on_error: OnError) -> Iterator[Example]:
    """Yields the tokens of conversations.

    Args:
        conversations: The conversations.
        chat: The template and the tokenizer.
        on_error: "stop" raises an error at a conversation that the template cannot render; "skip" omits it, and logs
            the number of them at the end.

    Raises:
        DataError: The template cannot be read, or a conversation cannot be rendered; the message lists the roles in the
            data.
    """
    chat.template.load(chat.tokenizer)
    conversations = iter(conversations)
    roles: collections.Counter[str] = collections.Counter()
    skipped: list[str] = []
    while batch := list(itertools.islice(conversations, _AT_ONCE)):
        for conversation in batch:
            _count(roles, conversation)
        for conversation, found in zip(batch, chat.examples(batch), strict=True):
            if isinstance(found, Example):
                yield found
                continue
            problem = f"{conversation.place}: {found}"
            if on_error == "stop":
                with contextlib.suppress(DataError):  # the first error counts
                    for remaining in conversations:
                        _count(roles, remaining)
                hint = 'ChatFiles.on_error = "skip" skips such conversations'
                raise DataError(f"{problem} (roles in the data: {_listed(roles)}); {hint}") from found
            skipped.append(problem)
    if skipped:
        logger.warning(
            "skipped %d conversations that the template cannot render, the first: %s (roles in the data: %s)",
            len(skipped),
            skipped[0],
            _listed(roles),
        )


def _count(roles: collections.Counter[str], conversation: Conversation) -> None:
    if not isinstance(conversation.content, Completion):
        roles.update(message.role for message in conversation.content)


def _listed(roles: collections.Counter[str]) -> str:
    return ", ".join(f"{role} {count:,}" for role, count in roles.most_common()) or "none"
