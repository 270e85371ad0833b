"""Conversations as training data: what the assistant says is predicted from all that was said before it."""

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
from ml.data.sequences.document_separator import Separator
from ml.data.sequences.packing import PackedDocuments
from ml.data.sequences.streams import ArrayStream, sha256_of
from ml.data.tokenizers import ByteTokenizer, Tokenizer

logger = logging.getLogger(__name__)


class Example(NamedTuple):
    """A conversation as tokens."""

    name: str  # a hash of the tokens, which decides whether it is held out
    tokens: np.ndarray  # (tokens,)
    is_target: np.ndarray  # (tokens,) bool


@configurable
class ChatData(Data):
    """Conversations, of which only what the assistant says is learned; several may share a sequence.

    A prompt with its completion is the one text and then the other, without a template. Each part is encoded by itself,
    so targets are exactly the tokens of the assistant and of what ends a message and the conversation.

    Args:
        corpus: Where the conversations come from.
        template: How messages become text.
        tokenizer: What their tokens are.
        packing: How conversations are put in sequences; `PackedDocuments.max_documents = 1` gives each one its own.
        separator: Text put behind each conversation, learned where the assistant speaks last; "" for none. None is
            the token that the tokenizer has for it: for bytes, a zero byte.
        too_long: What becomes of a conversation that does not fit in a sequence: "cut" keeps its start, "skip" leaves
            it out. Those are counted and said.
        validation_fraction: The part of the conversations that is held out, by a hash of what is said.
    """

    def __init__(
        self,
        corpus: Callable[..., ChatCorpus] = ChatFiles,
        template: Callable[..., ChatTemplate] = RoleMarkers,
        tokenizer: Callable[..., Tokenizer] = ByteTokenizer,
        packing: Callable[..., PackedDocuments] = PackedDocuments,
        separator: str | None = None,
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
        self.too_long = too_long
        self.validation_fraction = validation_fraction

    @property
    def separates_documents(self) -> bool:
        """As the packing does."""
        return self.packing.separates(None)

    @property
    def vocab_size(self) -> int | None:
        """All tokens are below this number."""
        return self.tokenizer.vocab_size

    @property
    def separator(self) -> Separator:
        """What stands behind a conversation."""
        return Separator.of(self.tokenizer, self._separator)

    def open(self, sequence_length: int, seed: int, images: ImageFormat | None = None) -> TokenDataset:
        """Reads the corpus.

        Raises:
            DataError: It cannot be read, a role is not known, or nothing is left to learn.
        """
        examples = self._fitting(map(self.encode, self.corpus.conversations()), sequence_length)
        held_out = held_out_names((example.name for example in examples), self.validation_fraction)
        train = _stream([example for example in examples if example.name not in held_out])
        validation = _stream([example for example in examples if example.name in held_out])
        arrays = [array for part in (train, validation) for array in (part.tokens, part.ends, part.predicted)]
        sha256 = sha256_of(*arrays)
        trained = train if self.validation_fraction < 1.0 else None
        return TokenDataset(trained, validation, self.tokenizer, self.packing, sequence_length, seed, sha256)

    def encode(self, conversation: Conversation) -> Example:
        """The tokens of a conversation, and which of them are to be learned.

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
        return Example(name, tokens, np.repeat(is_target, [len(part) for part in encoded]))

    def _segments(self, conversation: Conversation) -> list[Segment]:
        if isinstance(conversation.content, Completion):
            prompt, completion = conversation.content
            return [Segment(prompt, False), Segment(completion, True)]
        return self.template.segments(conversation.content)

    def _encode(self, segment: Segment) -> np.ndarray:
        special = self.tokenizer.special_token(segment.text) if segment.is_marker else None
        return self.tokenizer.encode(segment.text) if special is None else np.array([special], dtype=np.uint32)

    def _fitting(self, examples: Iterable[Example], length: int) -> list[Example]:
        """Those that fit in a sequence and have something to learn; what is done to the others is counted and said."""
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
            done = "cut at the end" if self.too_long == "cut" else "left out"
            logger.warning("%d conversations with more than %d tokens are %s", num_long, length + 1, done)
        if num_empty:
            logger.warning("%d conversations are left out: the assistant says nothing in them", num_empty)
        if not kept:
            raise DataError(
                "no conversation is left in which the assistant says something: give more (ChatFiles.paths) or a "
                "larger Trainer.sequence_length"
            )
        return kept


def _assistant_is_last(conversation: Conversation) -> bool:
    said = conversation.content
    return isinstance(said, Completion) or (len(said) > 0 and said[-1].role == ASSISTANT)


def _stream(examples: list[Example]) -> ArrayStream:
    stream = ArrayStream.of([example.tokens for example in examples])
    stream.predicted = np.concatenate([np.zeros(0, dtype=bool), *(example.is_target for example in examples)])
    return stream
