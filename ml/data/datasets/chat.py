"""Chat data: the assistant's messages are predicted from the conversation before them."""

import logging
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import numpy as np

from ml.config import child, configurable, require
from ml.data.chat.encoding import Example
from ml.data.chat.examples import examples_of
from ml.data.chat.role_markers import RoleMarkers
from ml.data.chat.template import ChatTemplate
from ml.data.corpora.chat_files import ChatCorpus, ChatFiles
from ml.data.datasets.conversation_data import ConversationData
from ml.data.datasets.dataset import ImageFormat
from ml.data.datasets.prepared_chat import Fitting, sha256_of_streams
from ml.data.datasets.token_dataset import TokenDataset
from ml.data.errors import DataError
from ml.data.reading.hold_out import held_out_names
from ml.data.sequences.packing import PackedDocuments
from ml.data.sequences.streams import ArrayStream, TokenStream, sha256_of
from ml.data.token_files.conversations import ConversationFolder
from ml.data.tokenizers import Tokenizer
from ml.data.tokenizers.lent import OwnOrLent

logger = logging.getLogger(__name__)


@configurable(neutral=["prepared"])
class ChatData(ConversationData):
    """Conversations of which only the assistant's messages are targets; several may share a sequence.

    A prompt with its completion is the concatenation of both, without a template. Each segment is encoded separately,
    so targets are exactly the tokens of the assistant and those that end its message and the conversation.

    Args:
        corpus: Source of conversations.
        template: Template that renders messages as text.
        tokenizer: Tokenizer of the text. None is that of the run, or of the run that it starts from, or else bytes.
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
        prepared: Folder that `python -m ml prepare_chat` wrote for these settings, which is read instead of the corpus;
            None tokenizes the corpus at each start.
    """

    validation_fraction: float

    def __init__(
        self,
        corpus: Callable[..., ChatCorpus] = ChatFiles,
        template: Callable[..., ChatTemplate] = RoleMarkers,
        tokenizer: Callable[..., Tokenizer] | None = None,
        packing: Callable[..., PackedDocuments] = PackedDocuments,
        separator: str | None = None,
        begin_token: str | None = None,
        too_long: Literal["cut", "skip"] = "cut",
        validation_fraction: float = 0.05,
        prepared: str | None = None,
    ):
        require(
            0.0 <= validation_fraction <= 1.0, "validation_fraction", f"must be in [0, 1], not {validation_fraction}"
        )
        self.corpus = child("corpus", corpus)
        self.template = child("template", template)
        self._tokenizer = OwnOrLent(None if tokenizer is None else child("tokenizer", tokenizer))
        self.packing = child("packing", packing)
        self._separator = separator
        self._begin_token = begin_token
        self.too_long = too_long
        self.validation_fraction = validation_fraction
        self.prepared = prepared

    @property
    def separates_documents(self) -> bool:
        """True if the packing masks attention between conversations."""
        return self.packing.separates(None)

    def open(self, sequence_length: int, seed: int, images: ImageFormat | None = None) -> TokenDataset:
        """Reads and tokenizes the corpus.

        Args:
            sequence_length: Tokens per sequence.
            seed: Seed of packing and order.
            images: Images that the model takes; ignored.

        Raises:
            DataError: The corpus cannot be read, a role is unknown, or no targets are left.
        """
        found = (self._tokenized if self.prepared is None else self._read)(sequence_length)
        trained = found.train if self.validation_fraction < 1.0 else None
        return TokenDataset(
            trained, found.validation, self.tokenizer, self.packing, sequence_length, seed, found.sha256,
            losses=found.losses,
        )  # fmt: skip

    def _read(self, length: int) -> "_Found":
        """Returns the prepared conversations that fit in a sequence."""
        assert self.prepared is not None  # the caller has it
        folder = ConversationFolder(self.prepared)
        folder.require(self.chat)
        fitting = Fitting.of(folder, length + 1, self.too_long == "skip")
        num_skipped = self._report(len(fitting.indices), fitting.num_long, fitting.num_empty, length)
        is_held_out = fitting.is_held_out(folder, self.validation_fraction)
        train, validation = (fitting.stream(folder, chosen) for chosen in (~is_held_out, is_held_out))
        num_cut = int(np.count_nonzero(fitting.is_cut & ~is_held_out))
        return _Found(train, validation, sha256_of_streams(train, validation), (num_cut, num_skipped))

    def _tokenized(self, length: int) -> "_Found":
        """Returns the conversations of the corpus that fit in a sequence."""
        found = examples_of(self.corpus.conversations(), self.chat, self.corpus.on_error)
        examples, cut, num_skipped = self._fitting(found, length)
        held_out = held_out_names((example.name for example in examples), self.validation_fraction)
        train = _stream([example for example in examples if example.name not in held_out])
        validation = _stream([example for example in examples if example.name in held_out])
        all_arrays = [array for part in (train, validation) for array in (part.tokens, part.ends, part.predicted)]
        arrays = [array for array in all_arrays if array is not None]
        return _Found(train, validation, sha256_of(*arrays), (sum(name not in held_out for name in cut), num_skipped))

    def _fitting(self, examples: Iterable[Example], length: int) -> tuple[list[Example], list[str], int]:
        """Returns the examples that fit in a sequence and have targets, the names of those cut, the number skipped."""
        kept, cut, num_long, num_empty = [], [], 0, 0
        for example in examples:
            is_long = len(example.tokens) > length + 1
            num_long += is_long
            if is_long and self.too_long == "skip":
                continue
            tokens, is_target = example.tokens[: length + 1], example.is_target[: length + 1]
            if is_target[1:].any():
                kept.append(Example(example.name, tokens, is_target))
                cut += [example.name] * is_long
            else:
                num_empty += 1
        return kept, cut, self._report(len(kept), num_long, num_empty, length)

    def _report(self, num_kept: int, num_long: int, num_empty: int, length: int) -> int:
        """Logs how many conversations were cut or skipped; returns the number skipped.

        Raises:
            DataError: None is left.
        """
        if num_long:
            action = "cut" if self.too_long == "cut" else "skipped"
            logger.warning("%s %d conversations of more than %d tokens", action, num_long, length + 1)
        if num_empty:
            logger.warning("skipped %d conversations without a word from the assistant", num_empty)
        if not num_kept:
            raise DataError(
                "no conversation with a message of the assistant is left: add data (ChatFiles.paths) or raise "
                "Trainer.sequence_length"
            )
        return num_empty + (num_long if self.too_long == "skip" else 0)


class _Found(NamedTuple):
    """Conversations that fit in a sequence.

    Attributes:
        train: Those to train on.
        validation: Those that are held out.
        sha256: Hash of both.
        losses: Number of conversations to train on that were cut, and number of all that were skipped.
    """

    train: TokenStream
    validation: TokenStream
    sha256: str
    losses: tuple[int, int]


def _stream(examples: list[Example]) -> ArrayStream:
    stream = ArrayStream.of([example.tokens for example in examples])
    stream.predicted = np.concatenate([np.zeros(0, dtype=bool), *(example.is_target for example in examples)])
    return stream
