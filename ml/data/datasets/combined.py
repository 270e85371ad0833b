"""Base classes of mixtures and concatenations: several datasets as one."""

import abc
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ml.config import child, require
from ml.data.chat.encoding import ChatFormat
from ml.data.chat.template import ChatTemplate
from ml.data.datasets.dataset import Data, Dataset, ImageFormat
from ml.data.datasets.statistics import DocumentStatistics, Portion
from ml.data.errors import DataError
from ml.data.randomness import derive_seed
from ml.data.sequences.batch import Batch
from ml.data.sequences.document_begin import Begin
from ml.data.sequences.document_separator import Separator
from ml.data.tokenizers import Tokenizer
from ml.data.tokenizers.identity import largest_of
from ml.data.tokenizers.lent import Lender


class CombinedData(Data):
    """Several datasets by name; the names are gin scopes."""

    def __init__(self, datasets: Mapping[str, Callable[..., Data]]):
        """Builds the parts.

        Args:
            datasets: Constructors of the parts by name; the parameter `datasets` of the subclass.
        """
        require(len(datasets) > 0, "datasets", "must name at least one dataset")
        wrong = [name for name in datasets if not name.isidentifier()]
        require(not wrong, "datasets", f"must have names that are valid scopes, not {', '.join(wrong)}")
        self.datasets: dict[str, Data] = {name: child(name, constructor) for name, constructor in datasets.items()}
        self._own = {name: part for name, part in self.datasets.items() if part.has_own_tokenizer}
        if self._own:
            for part in self.datasets.values():
                part.lend_tokenizer(lambda: self.tokenizer)

    @property
    def vocab_size(self) -> int | None:
        """Exclusive upper bound of the token ids of all parts; None if unknown for every part."""
        return max((part.vocab_size for part in self.datasets.values() if part.vocab_size is not None), default=None)

    @property
    def separates_documents(self) -> bool:
        """True if any part separates documents; then batches of all parts carry document ids."""
        return any(part.separates_documents for part in self.datasets.values())

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer that all parts share: of those that differ in added special tokens, the one with the most.

        Raises:
            DataError: Two parts have different tokenizers.
        """
        own = {name: part.tokenizer for name, part in self._own.items()}
        return own[largest_of(own)] if own else next(iter(self.datasets.values())).tokenizer

    @property
    def has_own_tokenizer(self) -> bool:
        """True if any part has its own tokenizer, which the others take."""
        return bool(self._own)

    def lend_tokenizer(self, lender: Lender) -> None:
        if not self._own:
            for part in self.datasets.values():
                part.lend_tokenizer(lender)

    def use_tokenizer(self, tokenizer: Tokenizer) -> None:
        for part in self._own.values():
            part.use_tokenizer(tokenizer)

    @property
    def separator(self) -> Separator:
        """Separator of the first part."""
        return next(iter(self.datasets.values())).separator

    @property
    def begin(self) -> Begin:
        """Begin of the documents of the first part."""
        return next(iter(self.datasets.values())).begin

    @property
    def chat_template(self) -> ChatTemplate | None:
        """Template of conversations of the first part that has any."""
        return next((found for data in self.datasets.values() if (found := data.chat_template) is not None), None)

    @property
    def chat(self) -> ChatFormat | None:
        """Tokens of conversations of the first part that has any."""
        return next((chat for data in self.datasets.values() if (chat := data.chat) is not None), None)

    @property
    def num_train_tokens(self) -> int | None:
        """Total number of training tokens; None if unknown for one part."""
        counts = [part.num_train_tokens for part in self.datasets.values()]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    @property
    def has_pairs(self) -> bool:
        """True if any part has pairs; then all must."""
        return any(part.has_pairs for part in self.datasets.values())

    def misfit(self, images: ImageFormat | None) -> str | None:
        if texts := [name for name, part in self.datasets.items() if self.has_pairs and not part.has_pairs]:
            return f"its parts mix pairs of answers with text, which has none: {', '.join(texts)}"
        problems = {name: part.misfit(images) for name, part in self.datasets.items()}
        return next((f"{name}: {problem}" for name, problem in problems.items() if problem), None)

    def open_parts(self, sequence_length: int, seed: int, images: ImageFormat | None) -> dict[str, Dataset]:
        """Opens all parts, each with a separate seed.

        Raises:
            DataError: A part cannot be used, or the tokenizers differ; the message begins with the name of the part.
        """
        opened: dict[str, Dataset] = {}
        for name, part in self.datasets.items():
            try:
                opened[name] = part.open(sequence_length, derive_seed(seed, "dataset", name), images)
            except DataError as error:
                raise DataError(f"{name}: {error}") from error
        largest_of({name: dataset.tokenizer for name, dataset in opened.items()})
        return opened


class CombinedDataset(Dataset):
    """Sequences of several datasets under one index; the held-out split is the union of theirs."""

    def __init__(self, parts: dict[str, Dataset]):
        self.parts = parts
        self._ordered = list(parts.values())
        self.num_train_tokens = sum(part.num_train_tokens for part in self._ordered)
        self.num_validation_tokens = sum(part.num_validation_tokens for part in self._ordered)
        self.num_sequences = sum(part.num_sequences for part in self._ordered)
        self.sequence_length = self._ordered[0].sequence_length
        self.separates_documents = any(part.separates_documents for part in self._ordered)
        self.has_pairs = any(part.has_pairs for part in self._ordered)
        self.tokenizer = parts[largest_of({name: part.tokenizer for name, part in parts.items()})].tokenizer
        named = " ".join(f"{name}={part.sha256}" for name, part in parts.items())
        self.sha256 = hashlib.sha256(named.encode()).hexdigest()

    @abc.abstractmethod
    def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Maps sequence indices to the parts.

        Args:
            indices: Indices of sequences in the run, (B,).

        Returns:
            Index of the part of each sequence, (B,), and index of the sequence in that part, (B,).
        """

    @abc.abstractmethod
    def sequences_of_parts(self, num_sequences: int) -> np.ndarray:
        """Returns how many of the first `num_sequences` of a run are of each part, (parts,)."""

    def portions(self, num_sequences: int) -> dict[str, Portion]:
        found: dict[str, Portion] = {}
        counts = self.sequences_of_parts(num_sequences).tolist()
        for (name, part), count in zip(self.parts.items(), counts, strict=True):
            for inner, (share, epochs) in part.portions(count).items():
                found[f"{name}/{inner}".rstrip("/")] = Portion(share * count / max(num_sequences, 1), epochs)
        return found

    def statistics(self) -> dict[str, DocumentStatistics]:
        found: dict[str, DocumentStatistics] = {}
        for name, part in self.parts.items():
            found |= {f"{name}/{inner}".rstrip("/"): one for inner, one in part.statistics().items()}
        return found

    def sequences(self, indices: np.ndarray) -> Batch:
        part_of, index_in_part = self.locate(indices)
        rows, batches = [], []
        for part in np.unique(part_of).tolist():
            here = np.flatnonzero(part_of == part)
            rows.append(here)
            batch = self._ordered[part].sequences(index_in_part[here])
            # Regardless of the parts in this batch: it must not depend on the number of ranks.
            batches.append(batch.with_documents() if self.separates_documents else batch)
        return Batch.interleaved(batches, np.concatenate(rows))

    def validation_batches(self, size: int, num_tokens: int | None = None) -> Iterator[Batch]:
        """Yields the held-out sequences of each part in turn.

        Args:
            size: Sequences per batch.
            num_tokens: Number of targets, divided among the parts in proportion to their held-out tokens; None for all.
        """
        for part, share in self._shares(num_tokens):
            yield from part.validation_batches(size, share)

    def validation_part(
        self, size: int, num_tokens: int | None = None, rank: int = 0, num_ranks: int = 1
    ) -> Iterator[Batch]:
        for index, (part, share) in enumerate(self._shares(num_tokens)):
            # Another rank begins with each part: the first ranks get one batch more where a part does not divide.
            yield from part.validation_part(size, share, (rank - index) % num_ranks, num_ranks)

    def validation_bytes(self, num_tokens: int | None = None) -> int:
        return sum(part.validation_bytes(share) for part, share in self._shares(num_tokens))

    def describe(self) -> dict[str, Any]:
        return {
            "sha256": self.sha256,
            "train_tokens": self.num_train_tokens,
            "validation_tokens": self.num_validation_tokens,
            "datasets": {name: part.describe() for name, part in self.parts.items()},
        }

    def _shares(self, num_tokens: int | None) -> list[tuple[Dataset, int | None]]:
        """Divides `num_tokens` among the parts; parts without a share are omitted."""
        sizes = [part.num_validation_tokens for part in self._ordered]
        if num_tokens is None or num_tokens >= sum(sizes):
            return [(part, None) for part, size in zip(self._ordered, sizes, strict=True) if size]
        ends = np.cumsum([0, *sizes]) * num_tokens // sum(sizes)
        shares = zip(self._ordered, np.diff(ends).tolist(), strict=True)
        return [(part, share) for part, share in shares if share]
