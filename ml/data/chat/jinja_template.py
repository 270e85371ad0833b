"""Chat templates of Hugging Face tokenizers, written in Jinja."""

import datetime
import functools
from pathlib import Path
from typing import Any

from ml.config import configurable, require
from ml.data.chat.control_text import ControlText
from ml.data.chat.jinja_environment import BEGIN, END, CompiledTemplate, compiled
from ml.data.chat.jinja_rendering import REASONING, Renderer
from ml.data.chat.messages import ASSISTANT, Message
from ml.data.chat.template import Chat, ChatTemplate, Segment, text_of
from ml.data.chat.template_files import TemplateFiles, read_templates
from ml.data.errors import DataError
from ml.data.tokenizers import Tokenizer

_PROBE = "\U0010fffd"  # an answer whose end is looked for


@configurable
class JinjaTemplate(ChatTemplate):
    """Chat template of a Hugging Face tokenizer.

    Conversations have the tokens of transformers' `apply_chat_template`, except that the name of a special token in a
    message is ordinary text. Targets are the texts in `{% generation %}` blocks. A template without them is rendered up
    to and after each message of the assistant, and the difference is the target. Nothing is added before or after a
    conversation.

    Args:
        path: Folder with a chat_template.jinja or a tokenizer_config.json, or a .jinja file. None is the folder of the
            tokenizer.
        variables: Further variables of the template, such as {'enable_thinking': False}; None for none.
        date: Date for templates that write today's, such as '2026-01-31'; None makes that an error.
    """

    writes_documents = True

    def __init__(
        self,
        path: str | None = None,
        variables: dict[str, bool | int | float | str] | None = None,
        date: str | None = None,
    ):
        self.path = path
        self.variables = variables or {}
        self.date = None if date is None else _date(date)
        self._files: TemplateFiles | None = None
        self._kept: TemplateFiles | None = None

    def load(self, tokenizer: Tokenizer) -> None:
        for source in self.files(tokenizer).sources.values():
            self._compiled(source)

    def segments(self, chat: Chat, tokenizer: Tokenizer) -> list[Segment]:
        return self._renderer(chat, tokenizer).segments()

    def prompt(self, chat: Chat, tokenizer: Tokenizer) -> list[Segment]:
        last = chat.messages[-1]
        if last.role != ASSISTANT:
            return self._renderer(chat, tokenizer).prompt()
        continued = _said(ASSISTANT, text_of(last) + _PROBE)
        return self._renderer(Chat((*chat.messages[:-1], continued), chat.tools), tokenizer).around(_PROBE)[0]

    def end(self, tokenizer: Tokenizer) -> list[Segment]:
        return self._renderer(Chat((_said("user", "a"), _said(ASSISTANT, _PROBE))), tokenizer).around(_PROBE)[1]

    def reads(self, key: str, tokenizer: Tokenizer) -> bool:
        wanted = REASONING if key in REASONING else (key,)
        return any(
            not self._compiled(source).names.isdisjoint(wanted) for source in self.files(tokenizer).sources.values()
        )

    def jinja(self, tokenizer: Tokenizer) -> str | None:
        source = self.files(tokenizer).sources.get("default")
        if source is None:
            return None
        return "".join(f"{{% set {name} = {value!r} %}}" for name, value in self.variables.items()) + source

    def files(self, tokenizer: Tokenizer) -> TemplateFiles:
        """Returns the templates and the tokens that they name.

        Raises:
            DataError: There is no template, or it cannot be read.
        """
        if self._files is None:
            try:
                self._files = self._read(tokenizer)
            except DataError:
                if self._kept is None:
                    raise
                self._files = self._kept
        return self._files

    def _read(self, tokenizer: Tokenizer) -> TemplateFiles:
        folder = tokenizer.folder if self.path is None else Path(self.path)
        if folder is None:
            raise DataError("JinjaTemplate.path must be set: the tokenizer has no folder with a chat template")
        return read_templates(folder)

    def kept(self, tokenizer: Tokenizer) -> dict[str, Any]:
        return self.files(tokenizer)._asdict()

    def restore(self, kept: dict[str, Any], *, only_if_missing: bool) -> None:
        found = TemplateFiles(kept.get("sources", {}), kept.get("tokens", {}))
        texts = [part for parts in found if isinstance(parts, dict) for part in (*parts, *parts.values())]
        if not all(isinstance(parts, dict) for parts in found) or not all(isinstance(text, str) for text in texts):
            raise DataError("the kept chat template is damaged: it must have texts by name in `sources` and `tokens`")
        self._kept = found
        self._files = None if only_if_missing else found

    def _renderer(self, chat: Chat, tokenizer: Tokenizer) -> Renderer:
        sources, tokens = self.files(tokenizer)
        source = sources.get("tool_use") if chat.tools else None
        source = sources.get("default") if source is None else source
        if source is None:
            raise DataError(f"there is no default chat template, only {', '.join(sources)}")
        variables = {**_tokens_of(tokenizer), **tokens, **self.variables}
        return Renderer(self._compiled(source), chat, variables, _control(tokenizer))

    def _compiled(self, source: str) -> CompiledTemplate:
        return compiled(source, self.date)


@functools.lru_cache(maxsize=4)
def _control(tokenizer: Tokenizer) -> ControlText:
    return ControlText(tokenizer.control_tokens, reserved=(BEGIN, END))


@functools.lru_cache(maxsize=4)
def _tokens_of(tokenizer: Tokenizer) -> dict[str, str]:
    """Returns the names of the tokens that begin and end documents, for a folder that names none."""
    names = {token.id: name for name, token in tokenizer.control_tokens.items()}
    wanted = {"bos_token": tokenizer.begin_of_document, "eos_token": tokenizer.end_of_document}
    return {name: names[token] for name, token in wanted.items() if token in names}


def _said(role: str, text: str) -> Message:
    return Message(role, {"role": role, "content": text})


def _date(text: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        require(False, "date", f"must be a date such as '2026-01-31', not {text!r}")
        raise
