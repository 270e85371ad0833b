"""Forms of preferences in JSON: two answers to one prompt, of which one is preferred (those of TRL)."""

import itertools
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from ml.data.chat.forms import messages_of, require_text
from ml.data.chat.messages import Completion, Conversation, Message
from ml.data.reading.records import BrokenRecord

_FORMS = '{"prompt", "chosen", "rejected"} or {"chosen", "rejected"}, each a text or a list of messages'


class Preference(NamedTuple):
    """Two conversations that differ in the answer.

    Attributes:
        place: File and line, for errors.
        chosen: The preferred one.
        rejected: The other one.
    """

    place: str
    chosen: Conversation
    rejected: Conversation


def preference_of(record: Any, ignored_keys: Collection[str] = ()) -> Preference:
    """Parses the JSON value of a preference; its place is left empty.

    Without `prompt`, the prompt is what both sides begin with: the same messages, or the same words. Messages of the
    prompt are no targets.

    Args:
        record: The value.
        ignored_keys: Keys of messages that are skipped.

    Raises:
        BrokenRecord: The value has none of the forms, or its two sides are equal.
    """
    if not isinstance(record, dict) or not {"chosen", "rejected"} <= record.keys():
        raise BrokenRecord(f"must be {_FORMS}")
    require_text(record, "the line")
    sides = [record[name] for name in ("chosen", "rejected")]
    prompt = record.get("prompt")
    if all(isinstance(side, str) for side in sides) and (prompt is None or isinstance(prompt, str)):
        chosen, rejected = _of_texts(prompt, *sides)
    elif all(isinstance(side, list) for side in sides) and (prompt is None or isinstance(prompt, list)):
        given = [] if prompt is None else messages_of(prompt, ignored_keys, "prompt")
        answers = [messages_of(record[name], ignored_keys, name) for name in ("chosen", "rejected")]
        chosen, rejected = _of_messages(given, *answers)
    else:
        raise BrokenRecord(f"must be {_FORMS}, all of one kind")
    if chosen == rejected:
        raise BrokenRecord("'chosen' and 'rejected' are equal")
    return Preference("", chosen, rejected)


def _of_texts(prompt: str | None, chosen: str, rejected: str) -> tuple[Conversation, Conversation]:
    if prompt is None:
        length = _num_shared(chosen, rejected)
        length -= chosen[:length].endswith(" ") and length < max(len(chosen), len(rejected))
        prompt, chosen, rejected = chosen[:length], chosen[length:], rejected[length:]
    return Conversation("", Completion(prompt, chosen)), Conversation("", Completion(prompt, rejected))


def _num_shared(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    """Returns the number of items that both begin with."""
    pairs = zip(chosen, rejected, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _of_messages(
    prompt: Collection[Message], chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[Conversation, Conversation]:
    length = 0 if prompt else _num_shared(chosen, rejected)
    given = tuple(message._replace(is_trained=False) for message in (*prompt, *chosen[:length]))
    sides = [Conversation("", (*given, *side[length:])) for side in (chosen, rejected)]
    return sides[0], sides[1]
