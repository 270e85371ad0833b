"""Forms of conversations in JSON: messages (OpenAI), prompt and completion, ShareGPT, Alpaca."""

import json
from collections.abc import Callable, Collection
from typing import Any

from ml.data.chat.messages import ASSISTANT, Completion, Conversation, Message, is_empty
from ml.data.reading.decoding import SURROGATE
from ml.data.reading.records import BrokenRecord

# Participants in ShareGPT files, whose name here is another.
_SHARE_GPT_ROLES = {
    "human": "user",
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "bing": ASSISTANT,
    "bard": ASSISTANT,
    "model": ASSISTANT,
    "function_call": ASSISTANT,
    "observation": "tool",
    "function_response": "tool",
}
_FORMS = (
    '{"messages": [...]}, {"prompt": TEXT, "completion": TEXT}, {"conversations": [...]} or '
    '{"instruction": TEXT, "output": TEXT}'
)


def conversation_of(record: Any, ignored_keys: Collection[str] = ()) -> Conversation:
    """Parses the JSON value of a conversation; its place is left empty.

    Args:
        record: The value.
        ignored_keys: Keys of messages that are skipped.

    Raises:
        BrokenRecord: The value has none of the forms, or several of them.
    """
    found = [form for keys, form in _BY_KEYS.items() if isinstance(record, dict) and not record.keys().isdisjoint(keys)]
    if len(found) != 1:
        raise BrokenRecord(f"must be one of {_FORMS}")
    require_text(record, "the line")
    conversation = found[0](record, ignored_keys)
    return conversation._replace(tools=_tools(record))


def messages_of(values: Any, ignored_keys: Collection[str] = (), name: str = "messages") -> tuple[Message, ...]:
    """Parses a list of messages, each {"role", "content", ...} or, as in ShareGPT, {"from", "value"}.

    Raises:
        BrokenRecord: It is no such list.
    """
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise BrokenRecord(f'"{name}" must be a list of {{"role": TEXT, "content": TEXT}}')
    return tuple(_message(value, ignored_keys) for value in values)


def _message(value: dict[str, Any], ignored_keys: Collection[str]) -> Message:
    if "from" in value and "role" not in value:
        value = _from_share_gpt(value)
    role = _text(value, "role")
    fields = {key: item for key, item in value.items() if key not in ignored_keys and key not in ("weight", "train")}
    content = fields.get("content")
    is_list = isinstance(content, list) and all(isinstance(part, dict) for part in content)
    if not is_list and not (content is None and _has_more(fields)):
        _text(fields, "content")
    return Message(role, fields, _is_trained(value, role))


def _has_more(fields: dict[str, Any]) -> bool:
    return any(not is_empty(value) for key, value in fields.items() if key not in ("role", "content"))


def _is_trained(value: dict[str, Any], role: str) -> bool:
    """Returns whether a message is trained, by its keys `weight` and `train`."""
    weight, train = value.get("weight"), value.get("train")
    if weight not in (None, 0, 1):
        raise BrokenRecord(f"'weight' must be 0 or 1, not {weight!r}")
    if train is not None and not isinstance(train, bool):
        raise BrokenRecord(f"'train' must be true or false, not {train!r}")
    chosen = [bool(one) for one in (weight, train) if one is not None]
    if len(set(chosen)) > 1:
        raise BrokenRecord("'weight' and 'train' contradict each other")
    if chosen == [True] and role != ASSISTANT:
        raise BrokenRecord(f"a message of the role {role!r} cannot be trained, only those of the assistant")
    return all(chosen)


def _from_share_gpt(value: dict[str, Any]) -> dict[str, Any]:
    sender, text = _text(value, "from"), value.get("value")
    rest = {key: item for key, item in value.items() if key not in ("from", "value")}
    role = _SHARE_GPT_ROLES.get(sender, sender)
    if sender != "function_call":
        return {"role": role, "content": text, **rest}
    try:
        calls = json.loads(_text(value, "value"))
    except ValueError as error:
        raise BrokenRecord(f"the value of a 'function_call' is not JSON: {error}") from None
    functions = calls if isinstance(calls, list) else [calls]
    return {"role": role, "tool_calls": [{"type": "function", "function": function} for function in functions], **rest}


def _from_messages(record: dict[str, Any], ignored_keys: Collection[str]) -> Conversation:
    return Conversation("", messages_of(record["messages"], ignored_keys))


def _from_conversations(record: dict[str, Any], ignored_keys: Collection[str]) -> Conversation:
    messages = messages_of(record["conversations"], ignored_keys, "conversations")
    return Conversation("", (*_system(record), *messages))


def _from_completion(record: dict[str, Any], ignored_keys: Collection[str]) -> Conversation:
    if isinstance(record.get("prompt"), list) and isinstance(record.get("completion"), list):
        given = messages_of(record["prompt"], ignored_keys, "prompt")
        answered = messages_of(record["completion"], ignored_keys, "completion")
        return Conversation("", (*(message._replace(is_trained=False) for message in given), *answered))
    return Conversation("", Completion(_text(record, "prompt"), _text(record, "completion")))


def _from_alpaca(record: dict[str, Any], ignored_keys: Collection[str]) -> Conversation:
    question, further = _text(record, "instruction"), record.get("input") or ""
    if not isinstance(further, str):
        raise BrokenRecord("'input' must be a text")
    history = record.get("history") or []
    pairs = [pair for pair in history if isinstance(pair, list) and len(pair) == 2] if isinstance(history, list) else []
    if len(pairs) != len(history) or not all(isinstance(text, str) for pair in pairs for text in pair):
        raise BrokenRecord("'history' must be a list of [QUESTION, ANSWER]")
    pairs.append([f"{question}\n\n{further}" if further else question, _text(record, "output")])
    said = [_said(role, text) for pair in pairs for role, text in zip(("user", ASSISTANT), pair, strict=True)]
    return Conversation("", (*_system(record), *said))


def _system(record: dict[str, Any]) -> list[Message]:
    return [] if is_empty(record.get("system")) else [_said("system", _text(record, "system"))]


def _said(role: str, text: str) -> Message:
    return Message(role, {"role": role, "content": text})


def _tools(record: dict[str, Any]) -> list[Any] | None:
    """Returns the tools of a conversation, a list or its JSON text; `functions` is the older form."""
    tools = record.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise BrokenRecord(f"'tools' is not JSON: {error}") from None
    functions = record.get("functions")
    if is_empty(tools) and isinstance(functions, list):
        tools = [{"type": "function", "function": function} for function in functions]
    if is_empty(tools):
        return None
    if not isinstance(tools, list):
        raise BrokenRecord("'tools' must be a list")
    return tools


_Form = Callable[[dict[str, Any], Collection[str]], Conversation]
_BY_KEYS: dict[tuple[str, ...], _Form] = {
    ("messages",): _from_messages,
    ("conversations",): _from_conversations,
    ("prompt", "completion"): _from_completion,
    ("instruction", "output"): _from_alpaca,
}


def _text(record: dict[str, Any], key: str) -> str:
    text = record.get(key)
    if not isinstance(text, str):
        raise BrokenRecord(f"{key!r} must be a text" if key in record else f"{key!r} is missing")
    return text


def require_text(value: Any, name: str) -> None:
    """Checks that every text in a JSON value can be encoded.

    Raises:
        BrokenRecord: One has a lone surrogate.
    """
    if isinstance(value, str):
        if not value.isascii() and SURROGATE.search(value):
            raise BrokenRecord(f"{name} contains a lone surrogate, which is not valid text")
    elif isinstance(value, list):
        for item in value:
            require_text(item, name)
    elif isinstance(value, dict):
        for key, item in value.items():
            require_text(key, name)
            require_text(item, repr(key))
