"""Images with captions, and those that lie in files."""

import abc
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ml.config import configurable, require
from ml.data.errors import DataError
from ml.data.reading.json_lines import BrokenLine, OnError, read_records
from ml.optional import optional_import


class CaptionedImage(NamedTuple):
    """An image and what is said of it."""

    name: str  # of the image: captions of one image share it, and it is the same on every machine
    pixels: np.ndarray  # (height, width, 3) uint8
    caption: str


class ImageCorpus(abc.ABC):
    """Yields images with captions, in the same order each time."""

    @abc.abstractmethod
    def captioned_images(self, image_size: tuple[int, int]) -> list[CaptionedImage]:
        """All of them, with images of this height and width; reading may fail only here."""


@configurable
class ImageTextFiles(ImageCorpus):
    """A file of JSON lines such as {"image": "cats/1.png", "text": "a cat on a mat"}, and the images that it names.

    An image is a NumPy file (`.npy`) of (height, width, 3) bytes, or whatever Pillow reads: that takes
    `pip install 'juniper-trainer[images]'`. It is stretched to the size that the model takes. Paths are relative to
    the file of lines; several lines may name one image.

    Args:
        path: The file of lines; it may be compressed (.gz, .bz2, .xz, .zst).
        on_error: Whether a line that is not such an object stops the reading or is skipped; skipped ones are counted.
    """

    def __init__(self, path: str = "", on_error: OnError = "stop"):
        require(path != "", "path", "must name a file of JSON lines")
        self.path = path
        self.on_error = on_error

    def captioned_images(self, image_size: tuple[int, int]) -> list[CaptionedImage]:
        """All lines in order; blank ones are passed over.

        Raises:
            DataError: There is no such file, or a line or the image that it names cannot be used.
        """
        images: dict[str, np.ndarray] = {}
        captioned = []
        for place, (name, caption) in read_records(Path(self.path), parsed, self.on_error, "ImageTextFiles.on_error"):
            if name not in images:
                images[name] = resized(_read_image(Path(self.path).parent / name, place), image_size)
            captioned.append(CaptionedImage(name, images[name], caption))
        return captioned


def parsed(record: Any) -> tuple[str, str]:
    """The path of the image and the caption in an object of JSON.

    Raises:
        BrokenLine: One of them is missing.
    """
    for key in ("image", "text"):
        if not isinstance(record, dict) or not isinstance(record.get(key), str) or not record[key]:
            raise BrokenLine(f'a line must be {{"image": PATH, "text": CAPTION}}, and {key!r} is not there')
    return record["image"], record["text"]


def _read_image(file: Path, place: str) -> np.ndarray:
    """(height, width, 3) uint8."""
    try:
        pixels = np.load(file, allow_pickle=False) if file.suffix == ".npy" else _read_with_pillow(file)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{place}: cannot read the image {file}: {error}") from error
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or pixels.size == 0:
        found = f"{pixels.dtype} of shape {pixels.shape}"
        raise DataError(f"{place}: the image {file} must be uint8 of shape (height, width, 3), not {found}")
    return pixels


def _read_with_pillow(file: Path) -> np.ndarray:
    optional_import("PIL", "images", str(file), DataError)
    from PIL import Image

    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def resized(pixels: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """(height, width, 3) uint8 stretched to `image_size`; a smaller one averages what it covers."""
    if pixels.shape[:2] == image_size:
        return pixels
    planes = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]  # (1, 3, height, width)
    planes = F.interpolate(planes, image_size, mode="bilinear", antialias=True)
    return planes[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()
