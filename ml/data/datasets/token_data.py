"""Prepared token files as training data."""

import functools
import hashlib
from collections.abc import Callable

import numpy as np

from ml.config import REQUIRED, child, configurable, require
from ml.data.datasets.dataset import Data, ImageFormat
from ml.data.datasets.token_dataset import TokenDataset
from ml.data.errors import DataError, MissingData
from ml.data.sequences.document_begin import Begin
from ml.data.sequences.document_separator import Separator
from ml.data.sequences.fill_in_the_middle import FillInTheMiddle, vocab_size_with
from ml.data.sequences.sampling import Sampling, ShuffledEpochs
from ml.data.sequences.streams import JoinedStream, StreamPart, TokenStream
from ml.data.token_files.reading import TokenFolder, find_token_folders
from ml.data.tokenizers import Tokenizer
from ml.data.tokenizers.identity import require_fit


@configurable
class TokenFiles(Data):
    """Token files written by `python -m ml prepare`, with their tokenizer.

    Args:
        paths: Prepared folder, or list of folders made with the same tokenizer, which are concatenated.
        sampling: Sampling of sequences from the stream.
        validation_fraction: Fraction of the training tokens that is held out instead, in [0, 1]: the end of each
            folder, whole documents if there are enough. None uses the held-out split that `prepare` wrote.
        separate_documents: True masks attention and targets between documents of a sequence, and restarts positions in
            each. None follows the sampling: True for packed documents, False for windows.
        begin_token: Token before each document, from which its first token is predicted: a special token of the
            tokenizer, or text that is one token; "" for none. None is the tokenizer's begin-of-document token, or the
            last token of the separator if documents are separated.
        fill_in_the_middle: Rearranges training documents so that the model learns to fill gaps; None leaves them
            unchanged.
    """

    def __init__(
        self,
        paths: str | list[str] = REQUIRED,
        sampling: Callable[..., Sampling] = ShuffledEpochs,
        validation_fraction: float | None = None,
        separate_documents: bool | None = None,
        begin_token: str | None = None,
        fill_in_the_middle: Callable[..., FillInTheMiddle] | None = None,
    ):
        require(len(paths) > 0, "paths", "names nothing to read")
        fits = validation_fraction is None or 0.0 <= validation_fraction <= 1.0
        require(fits, "validation_fraction", f"must be in [0, 1], not {validation_fraction}")
        self.paths = [paths] if isinstance(paths, str) else list(paths)
        self.sampling = child("sampling", sampling)
        self.validation_fraction = validation_fraction
        self.separate_documents = separate_documents
        self._begin_token = begin_token
        self._kept: Tokenizer | None = None
        self.fill_in_the_middle = child("fill_in_the_middle", fill_in_the_middle) if fill_in_the_middle else None

    @property
    def separates_documents(self) -> bool:
        """Value of `separate_documents`, or that of the sampling if it is None."""
        return self.sampling.separates(self.separate_documents)

    @property
    def vocab_size(self) -> int | None:
        """Exclusive upper bound of the token ids, sentinels included; None if the folders are missing."""
        try:
            folders = self._folders
        except DataError:  # `open` raises it again
            return None
        return vocab_size_with(
            max(part.vocab_size for pair in folders for part in pair if part), self.fill_in_the_middle
        )

    @property
    def num_train_tokens(self) -> int | None:
        """Number of training tokens according to the manifests; None if the folders are missing."""
        try:
            count = sum(train.num_tokens for train, _ in self._folders)
        except DataError:
            return None
        return count - round(count * (self.validation_fraction or 0.0))

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the first folder.

        Raises:
            DataError: The folder is missing.
        """
        return self._folders[0][0].tokenizer if self._kept is None else self._kept

    def use_tokenizer(self, tokenizer: Tokenizer) -> None:
        self._kept = tokenizer

    @property
    def separator(self) -> Separator:
        """Separator after each document."""
        return Separator.of(self.tokenizer, None)

    @property
    def begin(self) -> Begin:
        """Begin of each document."""
        return Begin.of(self.tokenizer, self.separator, self._begin_token, self.separates_documents)

    def open(self, sequence_length: int, seed: int, images: ImageFormat | None = None) -> TokenDataset:
        """Opens the folders; tokens are read on demand.

        Args:
            sequence_length: Tokens per sequence.
            seed: Seed of sampling and fill-in-the-middle.
            images: Images that the model takes; ignored.

        Raises:
            DataError: A folder is missing, damaged, made with another tokenizer than the first, or too short.
        """
        self._require_one_tokenizer()
        parts = [self._parts(*pair) for pair in self._folders]
        train, validation = (joined([pair[side] for pair in parts]) for side in (0, 1))
        if self.fill_in_the_middle is not None:
            train = self.fill_in_the_middle.apply(train, self.tokenizer, seed)
        trained = None if self.validation_fraction == 1.0 else train
        names = ", ".join(self.paths)
        try:
            return TokenDataset(
                trained, validation, self.tokenizer, self.sampling, sequence_length, seed, self._sha256(),
                self.separate_documents, self.begin,
            )  # fmt: skip
        except DataError as error:
            raise DataError(f"{names}: {error}") from error

    @functools.cached_property
    def _folders(self) -> list[tuple[TokenFolder, TokenFolder | None]]:
        """Training folder and held-out folder of each path."""
        try:
            pairs = [find_token_folders(path) for path in self.paths]
        except MissingData as error:
            raise MissingData(f"Trainer.data needs TokenFiles.paths: {error}") from error
        return [(TokenFolder(train), TokenFolder(held_out) if held_out else None) for train, held_out in pairs]

    def _require_one_tokenizer(self) -> None:
        first = self._folders[0][0]
        for folder in (part for pair in self._folders for part in pair if part):
            if folder.manifest["tokenizer"] != first.manifest["tokenizer"]:
                require_fit(first.tokenizer, folder.tokenizer, str(first.path), str(folder.path))

    def _parts(self, train: TokenFolder, held_out: TokenFolder | None) -> tuple[TokenStream, TokenStream]:
        stream = FolderStream(train)
        if self.validation_fraction is None:
            return stream, StreamPart(stream, 0, 0) if held_out is None else FolderStream(held_out)
        border = _border(stream, self.validation_fraction)
        return StreamPart(stream, 0, border), StreamPart(stream, border, stream.num_tokens)

    def _sha256(self) -> str:
        hashes = [folder.sha256 if folder else "" for pair in self._folders for folder in pair]
        return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


class FolderStream(TokenStream):
    """Token stream of a prepared folder."""

    def __init__(self, folder: TokenFolder):
        self._folder = folder
        self.num_tokens = folder.num_tokens
        self.num_end_tokens = 0 if folder.end_of_document is None else 1

    @property
    def ends(self) -> np.ndarray:  # type: ignore[override]  # read-only: it is read from the disk at first use
        return self._folder.document_ends

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._folder.read(start, stop)

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        return self._folder.gather(starts, length)


def joined(streams: list[TokenStream]) -> TokenStream:
    """Concatenates streams."""
    return streams[0] if len(streams) == 1 else JoinedStream(streams)


def _border(stream: TokenStream, fraction: float) -> int:
    """Returns where the held-out part begins: at a document boundary if that holds out about `fraction`."""
    wanted = stream.num_tokens - round(stream.num_tokens * fraction)
    if fraction in (0.0, 1.0) or not len(stream.ends):
        return wanted
    after = min(int(np.searchsorted(stream.ends, wanted)), len(stream.ends) - 1)
    near = [int(stream.ends[place]) for place in {max(after - 1, 0), after}]
    border = min(near, key=lambda end: abs(end - wanted))
    held_out = stream.num_tokens - border
    is_close = fraction / 4 <= held_out / stream.num_tokens <= min(4 * fraction, 0.5 if fraction < 0.25 else 1.0)
    return border if is_close else wanted
