"""Image-text data: a caption is predicted from the image before it."""

import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ml.config import child, configurable, require
from ml.data.corpora.image_files import CaptionedImage, ImageCorpus
from ml.data.corpora.synthetic_shapes import Shapes
from ml.data.datasets.dataset import Dataset, ImageFormat
from ml.data.datasets.statistics import DocumentStatistics
from ml.data.datasets.tokenized_data import TokenizedData
from ml.data.errors import DataError
from ml.data.reading.hold_out import held_out_names
from ml.data.sequences.batch import Batch
from ml.data.sequences.batch_indices import held_out_indices
from ml.data.sequences.document_separator import Separator
from ml.data.sequences.sampling import ShuffledEpochs, WindowSampling
from ml.data.tokenizers import Tokenizer
from ml.data.tokenizers.lent import OwnOrLent
from ml.targets import IGNORED


class Rows(NamedTuple):
    """Layout of sequences of an image and its caption.

    Attributes:
        length: Tokens per sequence.
        image_token_id: Token at the positions of an image.
        tokens_per_image: Number of positions of an image.
        pixel_mean: Subtracted from pixel values in [0, 1].
        pixel_std: Divisor of the result.
    """

    length: int
    image_token_id: int
    tokens_per_image: int
    pixel_mean: float
    pixel_std: float

    def batch(self, images: np.ndarray, captions: list[np.ndarray]) -> Batch:
        """Builds one sequence for each image and its caption.

        The tokens of the image come first; the last of them predicts the first token of the caption. Only tokens of the
        caption are targets.

        Args:
            images: (B, height, width, 3) uint8.
            captions: Tokens of the captions, B arrays.
        """
        tokens = np.zeros((len(captions), self.length), dtype=np.int64)
        targets = np.full_like(tokens, IGNORED)
        tokens[:, : self.tokens_per_image] = self.image_token_id
        first = self.tokens_per_image - 1
        for row, caption in enumerate(captions):
            end = first + len(caption)
            tokens[row, first + 1 : end] = caption[:-1]
            targets[row, first:end] = caption
        pixels = (images.astype(np.float32) / 255 - self.pixel_mean) / self.pixel_std
        return Batch.of(tokens, targets, pixels.transpose(0, 3, 1, 2), (1,) * len(captions))


class Captions(NamedTuple):
    """Split of the data: images without duplicates, and captions with the index of their image.

    Attributes:
        images: (I, height, width, 3) uint8.
        image_indices: Image of each caption, (N,).
        captions: Tokens of each caption, N arrays.
    """

    images: np.ndarray
    image_indices: np.ndarray
    captions: list[np.ndarray]

    @classmethod
    def of(cls, captioned: list[CaptionedImage], encode: Callable[[CaptionedImage], np.ndarray]) -> "Captions":
        pixels: dict[str, np.ndarray] = {image.name: image.pixels for image in captioned}
        indices = {name: index for index, name in enumerate(pixels)}
        return cls(
            np.stack(list(pixels.values())) if pixels else np.zeros((0, 0, 0, 3), dtype=np.uint8),
            np.array([indices[image.name] for image in captioned], dtype=np.int64),
            [encode(image) for image in captioned],
        )

    @property
    def tokens(self) -> np.ndarray:
        """Concatenated tokens of all captions."""
        return np.concatenate(self.captions) if self.captions else np.zeros(0, dtype=np.uint8)


class ImageTextDataset(Dataset):
    """Captioned images in memory."""

    def __init__(
        self,
        train: Captions,
        validation: Captions,
        rows: Rows,
        tokenizer: Tokenizer,
        sampling: WindowSampling,
        seed: int,
    ):
        self.train = train
        self.validation = validation
        self.num_train_tokens = len(train.tokens)
        self.num_validation_tokens = len(validation.tokens)
        self.num_sequences = len(train.captions)
        self.sequence_length = rows.length
        self.tokenizer = tokenizer
        self._rows = rows
        self._sampling = sampling
        self._seed = seed
        self.sha256 = _sha256(rows, train, validation)

    def sequences(self, indices: np.ndarray) -> Batch:
        # The sampling treats a caption as a window of one token.
        return self._batch(self.train, self._sampling.starts(indices, self.num_sequences + 1, 1, self._seed))

    def validation_batches(self, size: int, num_tokens: int | None = None) -> Iterator[Batch]:
        """Yields held-out captions in order.

        Args:
            size: Sequences per batch.
            num_tokens: Upper bound of the number of targets, from the start of the split, with at least one caption;
                None for all.
        """
        yield from self.validation_part(size, num_tokens)

    def validation_part(
        self, size: int, num_tokens: int | None = None, rank: int = 0, num_ranks: int = 1
    ) -> Iterator[Batch]:
        for indices in held_out_indices(self._validation_end(num_tokens), size, rank, num_ranks):
            yield self._batch(self.validation, indices)

    def statistics(self) -> dict[str, DocumentStatistics]:
        """Returns the statistics of the captions, each of which is a sequence with its image."""
        ends = np.cumsum([len(caption) for caption in self.train.captions], dtype=np.int64)
        return {"": DocumentStatistics.of(ends, num_cut=0, num_learned=None)}

    def describe(self) -> dict[str, Any]:
        """Returns a description of the data for the run's records."""
        return {
            "sha256": self.sha256,
            "train_tokens": self.num_train_tokens,
            "validation_tokens": self.num_validation_tokens,
            "train_images": len(self.train.images),
            "validation_images": len(self.validation.images),
        }

    def _batch(self, part: Captions, indices: np.ndarray) -> Batch:
        images = part.images[part.image_indices[indices]]
        return self._rows.batch(images, [part.captions[index] for index in indices])

    def _validation_end(self, num_tokens: int | None) -> int:
        ends = np.cumsum([len(caption) for caption in self.validation.captions])
        return len(ends) if num_tokens is None else max(1, int((ends <= num_tokens).sum()))


@configurable
class ImageTextData(TokenizedData):
    """Images with captions: a sequence is the image's tokens, the caption and the separator.

    Args:
        corpus: Source of captioned images.
        tokenizer: Tokenizer of captions. None is that of the run, or of the run that it starts from, or else bytes.
        sampling: Order of captions in training.
        separator: Text after each caption, which ends it; "" for none.
        pixel_mean: Mean of pixel values in [0, 1], subtracted from them.
        pixel_std: Standard deviation of pixel values in [0, 1]; divides the difference.
        validation_fraction: Fraction of the images that is held out with all their captions, in [0, 1]. 1 leaves
            nothing to train on, for data that is only evaluated.
    """

    validation_fraction: float

    def __init__(
        self,
        corpus: Callable[..., ImageCorpus] = Shapes,
        tokenizer: Callable[..., Tokenizer] | None = None,
        sampling: Callable[..., WindowSampling] = ShuffledEpochs,
        separator: str = "\0",
        pixel_mean: float = 0.5,
        pixel_std: float = 0.5,
        validation_fraction: float = 0.05,
    ):
        require(
            0.0 <= validation_fraction <= 1.0, "validation_fraction", f"must be in [0, 1], not {validation_fraction}"
        )
        self.corpus = child("corpus", corpus)
        self._tokenizer = OwnOrLent(None if tokenizer is None else child("tokenizer", tokenizer))
        self.sampling = child("sampling", sampling)
        self._separator = separator
        require(math.isfinite(pixel_mean), "pixel_mean", f"must be finite, not {pixel_mean}")
        require(0.0 < pixel_std < math.inf, "pixel_std", f"must be positive and finite, not {pixel_std}")
        self.pixel_mean = pixel_mean
        self.pixel_std = pixel_std
        self.validation_fraction = validation_fraction

    @property
    def vocab_size(self) -> int | None:
        """Exclusive upper bound of the token ids."""
        return self._tokenizer.vocab_size

    def misfit(self, images: ImageFormat | None) -> str | None:
        if images is None:
            return "it has images, and the model takes none"
        channels = images.shape[0]
        return (
            None if channels in (1, 3) else f"its images have 3 channels, or 1 as grayscale; the model takes {channels}"
        )

    @property
    def separator(self) -> Separator:
        """Separator after each caption."""
        return Separator.of(self.tokenizer, self._separator)

    def open(self, sequence_length: int, seed: int, images: ImageFormat | None = None) -> ImageTextDataset:
        """Reads the corpus, resizes its images and tokenizes its captions.

        Args:
            sequence_length: Tokens per sequence.
            seed: Seed of the order.
            images: Images that the model takes.

        Raises:
            DataError: There is nothing to train on, or an image or a caption cannot be used.
        """
        problem = self.misfit(images)
        if images is None or problem is not None:
            raise DataError(f"the data does not fit the model: {problem}")
        captioned = self.corpus.captioned_images(images.shape[1:])
        if images.shape[0] == 1:
            captioned = [image._replace(pixels=to_gray(image.pixels)) for image in captioned]
        rows = Rows(sequence_length, images.token_id, images.tokens_per_image, self.pixel_mean, self.pixel_std)
        parts = hold_out(captioned, self.validation_fraction)
        train, validation = (self._encoded(part, rows) for part in parts)
        if not train.captions and self.validation_fraction < 1.0:
            raise DataError("no image is left to train on: add images (ImageTextData.corpus)")
        return ImageTextDataset(train, validation, rows, self.tokenizer, self.sampling, seed)

    def _encoded(self, captioned: list[CaptionedImage], rows: Rows) -> Captions:
        return Captions.of(captioned, lambda image: self._caption(image, rows))

    def _caption(self, image: CaptionedImage, rows: Rows) -> np.ndarray:
        tokens = self.tokenizer.encode(image.caption + self._separator)
        if (tokens == rows.image_token_id).any():
            raise DataError(
                f"the caption of {image.name} has token {rows.image_token_id}, which stands for images: "
                "set another VisionLanguageModel.image_token_id"
            )
        needed = rows.tokens_per_image + len(tokens) - 1
        if needed > rows.length:
            raise DataError(
                f"the caption of {image.name} and its image take {needed} tokens: "
                f"raise Trainer.sequence_length, which is {rows.length}, or shorten it"
            )
        return tokens


def to_gray(pixels: np.ndarray) -> np.ndarray:
    """Converts (h, w, 3) uint8 to luma, (h, w, 1) uint8 (ITU-R BT.601)."""
    return np.rint(pixels @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)[..., None]


def hold_out(captioned: list[CaptionedImage], fraction: float) -> tuple[list[CaptionedImage], list[CaptionedImage]]:
    """Splits captioned images into a training part and a held-out part, by the hash of the image's name.

    All captions of an image are in the same part.

    Args:
        captioned: Captioned images.
        fraction: Fraction of the images that is held out; any positive fraction holds out at least one of several.
    """
    held_out = held_out_names((image.name for image in captioned), fraction)
    train = [image for image in captioned if image.name not in held_out]
    return train, [image for image in captioned if image.name in held_out]


def _sha256(rows: Rows, *parts: Captions) -> str:
    """Hashes everything that batches are made from."""
    digest = hashlib.sha256(repr(rows._replace(length=0)).encode())  # the length does not change the content of a batch
    for part in parts:
        lengths = np.array([len(caption) for caption in part.captions])
        for array in (part.images, part.image_indices, lengths, part.tokens):
            digest.update(f"{array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
