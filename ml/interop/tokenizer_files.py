"""Tokenizer, chat template and generation config of an exported folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml.data.chat.encoding import ChatFormat
from ml.data.chat.template_files import read_templates
from ml.data.errors import DataError
from ml.data.tokenizers import HuggingFaceTokenizer, Tokenizer
from ml.interop.folder import CHAT_TEMPLATE, CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, Folder
from ml.interop.new_folder import write_json

_OTHER_TEMPLATES = (CHAT_TEMPLATE, "chat_template.json")


def write_tokenizer(folder: Path, tokenizer: Tokenizer | None) -> list[str]:
    """Writes a tokenizer, unless the folder has it.

    Args:
        folder: The folder, with config.json and the files of the folder that the model was imported from.
        tokenizer: The tokenizer of the run.

    Returns:
        Lines about what is missing.
    """
    there = Folder(folder).tokenizer()
    if tokenizer is None:
        return [] if there is not None else ["no tokenizer is written"]
    if there is not None and _identity(there) == tokenizer.identity:
        return []
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        name = type(tokenizer).__name__
        if (folder / "vocab.json").is_file():  # of a folder without tokenizer.json, whose tokenizer the run cannot read
            return []
        if there is None:
            return [f"no tokenizer is written: {name} has no form in transformers"]
        return [f"the tokenizer is that of the imported folder, without the added tokens of {name}"]
    (folder / TOKENIZER).write_text(tokenizer.complete_content(), encoding="utf-8", newline="")
    if not (folder / TOKENIZER_CONFIG).is_file():
        names = {token.id: name for name, token in tokenizer.control_tokens.items()}
        named = {"eos_token": names[end]} if (end := tokenizer.end_of_document) in names else {}
        write_json(folder / TOKENIZER_CONFIG, {"tokenizer_class": "PreTrainedTokenizerFast", **named})
    return []


def write_chat_template(folder: Path, chat: ChatFormat | None) -> list[str]:
    """Writes the chat template of a run in Jinja, unless the folder has it.

    Args:
        folder: The folder, with its tokenizer.
        chat: The template with the tokenizer of the run; None for data without conversations, which keeps what is
            there.

    Returns:
        Lines about what is missing.
    """
    if chat is None:
        return []
    source = chat.jinja()
    try:
        there = read_templates(folder).sources.get("default")
    except DataError:
        there = None
    if source == there:
        return []
    for name in _OTHER_TEMPLATES:
        (folder / name).unlink(missing_ok=True)
    config = folder / TOKENIZER_CONFIG
    if config.is_file() and "chat_template" in (content := json.loads(config.read_text("utf-8"))):
        write_json(config, {name: value for name, value in content.items() if name != "chat_template"})
    if source is None:
        return [f"no chat template is written: {type(chat.template).__name__} has no form in Jinja with these tokens"]
    (folder / CHAT_TEMPLATE).write_text(source, encoding="utf-8", newline="")
    return []


def write_generation_config(folder: Path, kept: Mapping[str, bytes], chat: ChatFormat | None) -> None:
    """Writes generation_config.json: that of the imported folder, with the tokens that end an answer of the run.

    Args:
        folder: The folder, with config.json.
        kept: Files of the folder that the model was imported from, by name.
        chat: The template with the tokenizer of the run; None for data without conversations.
    """
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    found: dict[str, Any] = {name: config[name] for name in ids if config.get(name) is not None}
    content = {"_from_model_config": True, **found}
    if GENERATION_CONFIG in kept:
        content = json.loads(kept[GENERATION_CONFIG])
    ends = content.get("eos_token_id", config.get("eos_token_id"))
    known = [] if ends is None else ends if isinstance(ends, list) else [ends]
    new = sorted(set() if chat is None else chat.ending.tokens - set(known))
    if new:
        content = {name: value for name, value in content.items() if name != "_from_model_config"}
        content["eos_token_id"] = [*known, *new]
    if new or GENERATION_CONFIG not in kept:
        write_json(folder / GENERATION_CONFIG, content)


def _identity(tokenizer: Tokenizer) -> str | None:
    try:
        return tokenizer.identity
    except DataError:
        return None
