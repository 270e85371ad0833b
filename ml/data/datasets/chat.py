"""Chat data: the assistant's messages are predicted from the conversation before them."""

import hashlib
import logging
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import numpy as np

from ml.config import child, configurable, require
from ml.data.corpora.chat_files import ASSISTANT, ChatCorpus, ChatFiles, Completion, Conversation
from ml.data.datasets.chat_templates import ChatTemplate, RoleMarkers, Segment
from ml.data.datasets.dataset import Data, ImageFormat
from ml.data.datasets.token_dataset import TokenDataset
from ml.data.errors import DataError
from ml.data.reading.hold_out import held_out_names
from ml.data.sequences.document_begin import Begin
from ml.data.sequences.document_separator import Separator
from ml.data.sequences.packing import PackedDocuments
from ml.data.sequences.streams import ArrayStream, sha256_of
from ml.data.tokenizers import ByteTokenizer, Tokenizer

logger = logging.getLogger(__name__)


class Example(NamedTuple):
    """Tokenized conversation.

    Attributes:
        name: Hash of the tokens, which decides whether the example is held out.
        tokens: (tokens,).
        is_target: Marks the tokens to predict, (tokens,) bool.
    """

    name: str
    tokens: np.ndarray
    is_target: np.ndarray


@configurable
class ChatData(Data):
    """Conversations of which only the assistant's messages are targets; several may share a sequence.

    A prompt with its completion is the concatenation of both, without a template. Each segment is encoded separately,
    so targets are exactly the tokens of the assistant and those that end its message and the conversation.

    Args:
        corpus: Source of conversations.
        template: Template that renders messages as text.
        tokenizer: Tokenizer of the text.
        packing: Packing of conversations into sequences; `PackedDocuments.max_documents = 1` gives each its own
            sequence.
        separator: Text after each conversation, a target if the assistant speaks last; "" for none. None is the
            tokenizer's end-of-document token: for bytes, the zero byte.
        begin_token: Token before each conversation: a special token of the tokenizer, or text that is one token; ""
            for none. None is the tokenizer's begin-of-document token, or the last token of the separator. A template
            that writes the begin of a conversation decides it instead.
        too_long: Handling of a conversation that does not fit in a sequence: "cut" keeps its start, "skip" omits it.
            Their number is logged.
        validation_fraction: Fraction of the conversations that is held out, in [0, 1], chosen by the hash of their
            tokens. 1 leaves nothing to train on, for data that is only evaluated.
    """

    tokenizer: Tokenizer
    validation_fraction: float

    def __init__(
        self,
        corpus: Callable[..., ChatCorpus] = ChatFiles,
        template: Callable[..., ChatTemplate] = RoleMarkers,
        tokenizer: Callable[..., Tokenizer] = ByteTokenizer,
        packing: Callable[..., PackedDocuments] = PackedDocuments,
        separator: str | None = None,
        begin_token: str | None = None,
        too_long: Literal["cut", "skip"] = "cut",
        validation_fraction: float = 0.05,
    ):
        require(
            0.0 <= validation_fraction <= 1.0, "validation_fraction", f"must be in [0, 1], not {validation_fraction}"
        )
        self.corpus = child("corpus", corpus)
        self.template = child("template", template)
        self.tokenizer = child("tokenizer", tokenizer)
        self.packing = child("packing", packing)
        self._separator = separator
        self._begin_token = begin_token
        self.too_long = too_long
        self.validation_fraction = validation_fraction

    @property
    def separates_documents(self) -> bool:
        """True if the packing masks attention between conversations."""
        return self.packing.separates(None)

    @property
    def vocab_size(self) -> int | None:
        """Exclusive upper bound of the token ids."""
        return self.tokenizer.vocab_size

    @property
    def separator(self) -> Separator:
        """Separator after each conversation."""
        return Separator.of(self.tokenizer, self._separator)

    @property
    def begin(self) -> Begin:
        """Begin of each conversation."""
        return Begin.of(self.tokenizer, self.separator, self._begin_token, self.separates_documents)

    def open(self, sequence_length: int, seed: int, images: ImageFormat | None = None) -> TokenDataset:
        """Reads and tokenizes the corpus.

        Args:
            sequence_length: Tokens per sequence.
            seed: Seed of packing and order.
            images: Images that the model takes; ignored.

        Raises:
            DataError: The corpus cannot be read, a role is unknown, or no targets are left.
        """
        examples = self._fitting(map(self.encode, self.corpus.conversations()), sequence_length)
        held_out = held_out_names((example.name for example in examples), self.validation_fraction)
        train = _stream([example for example in examples if example.name not in held_out])
        validation = _stream([example for example in examples if example.name in held_out])
        found = [array for part in (train, validation) for array in (part.tokens, part.ends, part.predicted)]
        arrays = [array for array in found if array is not None]
        sha256 = sha256_of(*arrays)
        trained = train if self.validation_fraction < 1.0 else None
        return TokenDataset(trained, validation, self.tokenizer, self.packing, sequence_length, seed, sha256)

    def encode(self, conversation: Conversation) -> Example:
        """Tokenizes a conversation and marks its targets.

        Raises:
            DataError: The template does not know a role.
        """
        try:
            segments = self._segments(conversation)
        except DataError as error:
            raise DataError(f"{conversation.place}: {error}") from error
        encoded = [*map(self._encode, segments), self.separator.tokens]
        is_target = [*(segment.is_target for segment in segments), _assistant_is_last(conversation)]
        tokens = np.concatenate(encoded)
        name = hashlib.sha256(tokens.astype(np.uint32).tobytes()).hexdigest()
        targets = np.repeat(is_target, [len(part) for part in encoded])
        is_begun = self.template.writes_begin and not isinstance(conversation.content, Completion)
        begun = tokens if is_begun else self.begin.before(tokens)
        return Example(name, begun, np.concatenate((np.zeros(len(begun) - len(tokens), dtype=bool), targets)))

    def _segments(self, conversation: Conversation) -> list[Segment]:
        if isinstance(conversation.content, Completion):
            prompt, completion = conversation.content
            return [Segment(prompt, False), Segment(completion, True)]
        return self.template.segments(conversation.content)

    def _encode(self, segment: Segment) -> np.ndarray:
        special = self.tokenizer.special_token(segment.text) if segment.is_marker else None
        return self.tokenizer.encode(segment.text) if special is None else np.array([special], dtype=np.uint32)

    def _fitting(self, examples: Iterable[Example], length: int) -> list[Example]:
        """Returns the examples that fit in a sequence and have targets; logs how many were cut or skipped."""
        kept, num_long, num_empty = [], 0, 0
        for example in examples:
            is_long = len(example.tokens) > length + 1
            num_long += is_long
            if is_long and self.too_long == "skip":
                continue
            tokens, is_target = example.tokens[: length + 1], example.is_target[: length + 1]
            if is_target[1:].any():
                kept.append(Example(example.name, tokens, is_target))
            else:
                num_empty += 1
        if num_long:
            action = "cut" if self.too_long == "cut" else "skipped"
            logger.warning("%s %d conversations of more than %d tokens", action, num_long, length + 1)
        if num_empty:
            logger.warning("skipped %d conversations without a word from the assistant", num_empty)
        if not kept:
            raise DataError(
                "no conversation with a message of the assistant is left: add data (ChatFiles.paths) or raise "
                "Trainer.sequence_length"
            )
        return kept


def _assistant_is_last(conversation: Conversation) -> bool:
    content = conversation.content
    return isinstance(content, Completion) or (len(content) > 0 and content[-1].role == ASSISTANT)


def _stream(examples: list[Example]) -> ArrayStream:
    stream = ArrayStream.of([example.tokens for example in examples])
    stream.predicted = np.concatenate([np.zeros(0, dtype=bool), *(example.is_target for example in examples)])
    return stream
