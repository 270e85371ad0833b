"""Chat templates in the folder of a tokenizer."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from ml.data.errors import DataError

_FILE = "chat_template.jinja"
_FURTHER = "additional_chat_templates"
_CONFIG = "tokenizer_config.json"
_MAP = "special_tokens_map.json"
_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TemplateFiles(NamedTuple):
    """Chat templates with the tokens that they name.

    Attributes:
        sources: Text of each template, by name: "default", and others such as "tool_use".
        tokens: Texts of the tokens `bos_token`, `eos_token` and the like.
    """

    sources: dict[str, str]
    tokens: dict[str, str]


def read_templates(path: Path) -> TemplateFiles:
    """Reads the chat templates of a folder or a .jinja file, with the tokens of its folder.

    Raises:
        DataError: There is no template, or a file cannot be read.
    """
    folder = path if path.is_dir() else path.parent
    config = _json(folder / _CONFIG)
    tokens = {**_named(_json(folder / _MAP)), **_named(config)}
    if not path.is_dir():
        return TemplateFiles({"default": _text(path)}, tokens)
    sources = _configured(config.get("chat_template"), folder / _CONFIG)
    if (folder / _FILE).is_file():
        sources["default"] = _text(folder / _FILE)
    sources |= {file.stem: _text(file) for file in sorted((folder / _FURTHER).glob("*.jinja"))}
    if not sources:
        raise DataError(f"{folder} has no chat template: no {_FILE}, and no chat_template in {_CONFIG}")
    return TemplateFiles(sources, tokens)


def _configured(value: Any, file: Path) -> dict[str, str]:
    """Returns the templates of a tokenizer_config.json: a text, or a list of {"name", "template"}."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    try:
        return {entry["name"]: str(entry["template"]) for entry in value}
    except (TypeError, KeyError):
        raise DataError(f'{file}: chat_template must be a text or a list of {{"name", "template"}}') from None


def _named(config: dict[str, Any]) -> dict[str, str]:
    found = {name: config.get(name) for name in _TOKENS}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in found.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = json.loads(_text(file))
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{file} must be a JSON object")
    return found


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except OSError as error:
        raise DataError(f"cannot read the chat template {file} (from {Path.cwd()}): {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{file} is not UTF-8") from None
