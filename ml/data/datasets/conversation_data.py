"""Data of conversations, rendered by a template."""

import functools

from ml.data.chat.encoding import ChatFormat
from ml.data.chat.template import ChatTemplate
from ml.data.datasets.tokenized_data import TokenizedData
from ml.data.errors import DataError
from ml.data.sequences.document_begin import Begin
from ml.data.sequences.document_separator import Separator


class ConversationData(TokenizedData):
    """Base of data whose documents are conversations; subclasses set the attributes.

    Attributes:
        template: Template that renders messages as text.
    """

    template: ChatTemplate
    _separator: str | None
    _begin_token: str | None

    @property
    def vocab_size(self) -> int | None:
        """Exclusive upper bound of the token ids; None if the tokenizer cannot be read."""
        try:
            return self._tokenizer.vocab_size
        except DataError:  # reading the data raises it again
            return None

    @property
    def separator(self) -> Separator:
        """Separator after each conversation."""
        return Separator.of(self.tokenizer, self._separator)

    @property
    def begin(self) -> Begin:
        """Begin of each conversation."""
        return Begin.of(self.tokenizer, self.separator, self._begin_token, self.separates_documents)

    @property
    def chat_template(self) -> ChatTemplate:
        """Template of conversations."""
        return self.template

    @functools.cached_property
    def chat(self) -> ChatFormat:
        """Template, tokenizer and separator, for generation with the tokens of training."""
        return ChatFormat(self.template, self.tokenizer, self.separator, self.begin)
