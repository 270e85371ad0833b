"""Preference data: pairs of a preferred and a rejected answer to one prompt."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np

from ml.config import child, configurable, require
from ml.data.chat.preferences import Preference
from ml.data.chat.role_markers import RoleMarkers
from ml.data.chat.template import ChatTemplate
from ml.data.corpora.preference_files import PreferenceCorpus, PreferenceFiles
from ml.data.datasets.conversation_data import ConversationData
from ml.data.datasets.dataset import Dataset, ImageFormat
from ml.data.datasets.pair_sequences import Pair, PairSequences
from ml.data.datasets.statistics import DocumentStatistics
from ml.data.errors import DataError
from ml.data.reading.hold_out import held_out_names
from ml.data.sequences.batch import Batch
from ml.data.sequences.batch_indices import held_out_indices
from ml.data.sequences.packing import PackedDocuments
from ml.data.sequences.streams import sha256_of
from ml.data.tokenizers import Tokenizer
from ml.data.tokenizers.lent import OwnOrLent

logger = logging.getLogger(__name__)


@configurable
class PreferenceData(ConversationData):
    """Pairs of answers for `Trainer.preference`: a sequence holds both sides of a pair, each a document.

    The sides are tokenized as `ChatData` does. Only the answers are targets. Attention and positions are separate.

    Args:
        corpus: Source of preferences.
        template: Template that renders messages as text.
        tokenizer: Tokenizer of the text. None is that of the run, or of the run that it starts from, or else bytes.
        packing: Packing of pairs into sequences; `PackedDocuments.max_documents = 1` gives each its own sequence.
        separator: Text after each side, a target; "" for none. None is the tokenizer's end-of-document token.
        begin_token: Token before each side, as `ChatData.begin_token`.
        too_long: Handling of a pair whose two sides do not fit in a sequence: "skip" omits it and logs how many there
            were, "stop" raises an error.
        validation_fraction: Fraction of the prompts that is held out, in [0, 1], with all of their pairs. 1 leaves
            nothing to train on, for data that is only evaluated.
    """

    validation_fraction: float
    has_pairs = True
    separates_documents = True

    def __init__(
        self,
        corpus: Callable[..., PreferenceCorpus] = PreferenceFiles,
        template: Callable[..., ChatTemplate] = RoleMarkers,
        tokenizer: Callable[..., Tokenizer] | None = None,
        packing: Callable[..., PackedDocuments] = PackedDocuments,
        separator: str | None = None,
        begin_token: str | None = None,
        too_long: Literal["skip", "stop"] = "skip",
        validation_fraction: float = 0.05,
    ):
        fits = 0.0 <= validation_fraction <= 1.0
        require(fits, "validation_fraction", f"must be in [0, 1], not {validation_fraction}")
        self.corpus = child("corpus", corpus)
        self.template = child("template", template)
        self._tokenizer = OwnOrLent(None if tokenizer is None else child("tokenizer", tokenizer))
        self.packing = child("packing", packing)
        self._separator = separator
        self._begin_token = begin_token
        self.too_long = too_long
        self.validation_fraction = validation_fraction

    def open(self, sequence_length: int, seed: int, images: ImageFormat | None = None) -> "PreferenceDataset":
        """Reads and tokenizes the corpus.

        Args:
            sequence_length: Tokens per sequence.
            seed: Seed of packing and order.
            images: Images that the model takes; ignored.

        Raises:
            DataError: The corpus cannot be read, or no pair is left.
        """
        pairs = self._fitting(self._pairs(), sequence_length)
        held_out = held_out_names((pair.name for pair in pairs), self.validation_fraction)
        train = [pair for pair in pairs if pair.name not in held_out]
        validation = [pair for pair in pairs if pair.name in held_out]
        return PreferenceDataset(train, validation, self.tokenizer, self.packing, sequence_length, seed)

    def _pairs(self) -> Iterator[tuple[str, Pair]]:
        """Tokenizes the preferences; `corpus.on_error` handles one that the template cannot render."""
        self.template.load(self.tokenizer)
        skipped: list[str] = []
        for preference in self.corpus.preferences():
            try:
                yield preference.place, self._pair(preference)
            except DataError as error:
                problem = f"{preference.place}: {error}"
                if self.corpus.on_error == "stop":
                    raise DataError(problem) from error
                skipped.append(problem)
        if skipped:
            logger.warning("skipped %d preferences, the first: %s", len(skipped), skipped[0])

    def _pair(self, preference: Preference) -> Pair:
        sides = [self.chat.example(side) for side in (preference.chosen, preference.rejected)]
        for name, side in zip(("chosen", "rejected"), sides, strict=True):
            if not side.is_target[1:].any():
                raise DataError(f"{name!r} has no answer of the assistant")
        length = min(len(side.tokens) for side in sides)
        differs = np.flatnonzero(sides[0].tokens[:length] != sides[1].tokens[:length])
        prompt = sides[0].tokens[: differs[0] if len(differs) else length]
        return Pair(hashlib.sha256(prompt.astype(np.uint32).tobytes()).hexdigest(), *sides)

    def _fitting(self, pairs: Iterable[tuple[str, Pair]], length: int) -> list[Pair]:
        """Returns the pairs that fit in a sequence; logs how many do not."""
        kept, num_long = [], 0
        for place, pair in pairs:
            if pair.size <= length:
                kept.append(pair)
                continue
            num_long += 1
            if self.too_long == "stop":
                raise DataError(
                    f"{place}: both sides take {pair.size} positions, and Trainer.sequence_length is {length}"
                )
        if num_long:
            logger.warning("skipped %d pairs of more than %d positions", num_long, length)
        if not kept:
            raise DataError("no pair is left: add data (PreferenceFiles.paths) or raise Trainer.sequence_length")
        return kept


class PreferenceDataset(Dataset):
    """Pairs in memory."""

    separates_documents = True
    has_pairs = True

    def __init__(
        self,
        train: list[Pair],
        validation: list[Pair],
        tokenizer: Tokenizer,
        packing: PackedDocuments,
        sequence_length: int,
        seed: int,
    ):
        self.train = train
        self.validation = validation
        self.num_train_tokens = sum(pair.num_targets for pair in train)
        self.num_validation_tokens = sum(pair.num_targets for pair in validation)
        self.sequence_length = sequence_length
        self.tokenizer = tokenizer
        self._packing = packing
        self._sequences = PairSequences(train, packing, sequence_length, seed)
        self.num_sequences = self._sequences.num_sequences
        self.sha256 = sha256_of(*(array for part in (train, validation) for array in _arrays(part)))

    def sequences(self, indices: np.ndarray) -> Batch:
        return self._sequences.batch(indices)

    def validation_batches(self, size: int, num_tokens: int | None = None) -> Iterator[Batch]:
        """Yields held-out pairs in order.

        Args:
            size: Sequences per batch.
            num_tokens: Approximate number of targets, from the start of the split, with at least one pair; None for
                all.
        """
        yield from self.validation_part(size, num_tokens)

    def validation_part(
        self, size: int, num_tokens: int | None = None, rank: int = 0, num_ranks: int = 1
    ) -> Iterator[Batch]:
        ends = np.cumsum([pair.num_targets for pair in self.validation])
        count = len(ends) if num_tokens is None else max(1, int((ends <= num_tokens).sum()))
        held_out = PairSequences(self.validation[:count], self._packing, self.sequence_length, None)
        for indices in held_out_indices(held_out.num_sequences, size, rank, num_ranks):
            yield held_out.batch(indices)

    def statistics(self) -> dict[str, DocumentStatistics]:
        """Returns the statistics of the sides of all pairs."""
        sides = [side for pair in self.train for side in pair[1:]]
        ends = np.cumsum([len(side.tokens) for side in sides], dtype=np.int64)
        return {"": DocumentStatistics.of(ends, 0, sum(int(side.is_target.sum()) for side in sides))}

    def describe(self) -> dict[str, Any]:
        return {
            "sha256": self.sha256,
            "train_tokens": self.num_train_tokens,
            "validation_tokens": self.num_validation_tokens,
            "validation_pairs": len(self.validation),
            **self._sequences.describe(),
        }


def _arrays(pairs: list[Pair]) -> list[np.ndarray]:
    """Returns what identifies pairs: the tokens and masks of their sides, and the lengths."""
    sides = [side for pair in pairs for side in pair[1:]]
    lengths = np.array([len(side.tokens) for side in sides], dtype=np.int64)
    tokens = np.concatenate([np.zeros(0, dtype=np.uint32), *(side.tokens.astype(np.uint32) for side in sides)])
    return [lengths, tokens, np.concatenate([np.zeros(0, dtype=bool), *(side.is_target for side in sides)])]
