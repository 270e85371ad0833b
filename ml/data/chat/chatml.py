"""The markers of ChatML."""

from ml.config import configurable
from ml.data.chat.messages import ASSISTANT, Message
from ml.data.chat.template import Chat, ChatTemplate, Segment, text_of
from ml.data.errors import DataError
from ml.data.tokenizers import Tokenizer

_START, _END = "<|im_start|>", "<|im_end|>"
_JINJA = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


@configurable
class ChatML(ChatTemplate):
    """<|im_start|>role, a line break, the message, <|im_end|> and a line break; any role.

    The markers are special tokens if the tokenizer has tokens of these names, and the same text inside a message is
    ordinary text. Otherwise they are ordinary text, and a message cannot contain them.
    """

    def segments(self, chat: Chat, tokenizer: Tokenizer) -> list[Segment]:
        return [segment for message in chat.messages for segment in self._message(message, tokenizer)]

    def prompt(self, chat: Chat, tokenizer: Tokenizer) -> list[Segment]:
        if chat.messages[-1].role == ASSISTANT:
            return self.segments(chat, tokenizer)[:-2]
        return [*self.segments(chat, tokenizer), *_header(ASSISTANT)]

    def end(self, tokenizer: Tokenizer) -> list[Segment]:
        return [Segment(_END, True, "marker")]

    def reads(self, key: str, tokenizer: Tokenizer) -> bool:
        return False

    def jinja(self, tokenizer: Tokenizer) -> str | None:
        """Returns the template where its markers are special tokens; otherwise parts would be encoded as one text."""
        return None if None in (tokenizer.special_token(_START), tokenizer.special_token(_END)) else _JINJA

    def _message(self, message: Message, tokenizer: Tokenizer) -> list[Segment]:
        text, is_target = text_of(message), message.is_target
        for marker in (_START, _END):
            if marker in f"{message.role}\n{text}" and (
                marker in message.role or tokenizer.special_token(marker) is None
            ):
                raise DataError(
                    f"a message contains {marker}, which the tokenizer has no special token for: ChatML cannot "
                    "distinguish it from its marker"
                )
        return [
            *_header(message.role),
            Segment(text, is_target),
            Segment(_END, is_target, "marker"),
            Segment("\n", False),
        ]


def _header(role: str) -> list[Segment]:
    return [Segment(_START, False, "marker"), Segment(f"{role}\n", False)]
