"""Images with captions, and their JSON lines files."""

import abc
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ml.config import configurable, require
from ml.data.errors import DataError
from ml.data.reading.options import OnError, OptionNames, Reading
from ml.data.reading.record_files import read_records
from ml.data.reading.records import BrokenRecord
from ml.data.reading.sources import find_sources
from ml.optional import optional_import


class CaptionedImage(NamedTuple):
    """Image with a caption.

    Attributes:
        name: Identifier of the image, equal on every machine; captions of one image share it.
        pixels: (height, width, 3) uint8.
        caption: Text that describes the image.
    """

    name: str
    pixels: np.ndarray
    caption: str


class ImageCorpus(abc.ABC):
    """Source of captioned images, in a fixed order."""

    @abc.abstractmethod
    def captioned_images(self, image_size: tuple[int, int]) -> list[CaptionedImage]:
        """Returns all captioned images. The corpus is read here, not in the constructor.

        Args:
            image_size: Height and width in pixels that images are resized to.
        """


@configurable
class ImageTextFiles(ImageCorpus):
    """JSON lines file of captioned images, with lines such as {"image": "cats/1.png", "text": "a cat on a mat"}.

    An image is a NumPy file (`.npy`) of (height, width, 3) uint8, or any format that Pillow reads, which needs
    `pip install 'juniper-trainer[images]'`. Images are stretched to the size that the model takes. Image paths are
    relative to the folder of the JSON lines file; several lines may name one image.

    Args:
        path: JSON lines file; it may be compressed (.gz, .bz2, .xz, .zst).
        on_error: Handling of an invalid line: "stop" raises an error, "skip" omits the line and logs how many there
            were.
    """

    def __init__(self, path: str = "", on_error: OnError = "stop"):
        require(path != "", "path", "must name a file of JSON lines")
        self.path = path
        self.on_error = on_error

    def captioned_images(self, image_size: tuple[int, int]) -> list[CaptionedImage]:
        """Returns the images and captions of all lines, in order; blank lines are ignored.

        Args:
            image_size: Height and width in pixels that images are resized to.

        Raises:
            DataError: The file does not exist, or a line or its image cannot be used.
        """
        images: dict[str, np.ndarray] = {}
        captioned = []
        reading = Reading(on_error=self.on_error, names=OptionNames("ImageTextFiles"))
        sources = find_sources([self.path], reading=reading, paths_option="ImageTextFiles.path")
        for place, (name, caption) in read_records(sources, parsed, reading):
            if name not in images:
                images[name] = resized(_read_image(Path(self.path).parent / name, place), image_size)
            captioned.append(CaptionedImage(name, images[name], caption))
        return captioned


def parsed(record: Any) -> tuple[str, str]:
    """Returns the image path and the caption in the JSON object of a line.

    Raises:
        BrokenRecord: One of them is missing.
    """
    for key in ("image", "text"):
        if not isinstance(record, dict) or not isinstance(record.get(key), str) or not record[key]:
            raise BrokenRecord(f'a line must be {{"image": PATH, "text": CAPTION}}, but {key!r} is missing')
    return record["image"], record["text"]


def _read_image(file: Path, place: str) -> np.ndarray:
    """Reads an image as (height, width, 3) uint8."""
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
    """Resizes (height, width, 3) uint8 to `image_size`, (height, width); downscaling averages the covered pixels."""
    if pixels.shape[:2] == image_size:
        return pixels
    planes = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]  # (1, 3, height, width)
    planes = F.interpolate(planes, image_size, mode="bilinear", antialias=True)
    return planes[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()
