"""Synthetic images of shapes with captions: vision-language data that every machine can generate."""

import numpy as np

from ml.config import configurable, require
from ml.data.corpora.image_files import CaptionedImage, ImageCorpus
from ml.data.randomness import derive_seed, random_integers

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 215, 50),
    "purple": (150, 50, 190),
    "white": (240, 240, 240),
}
SHAPES = ("square", "circle", "triangle", "cross")
POSITIONS = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")

_NOISE = 20  # largest absolute change of a pixel value
_MAX_BACKGROUND = 60
_RADII = 0.09, 0.14  # smallest and largest, as fractions of the image's height and width, as is
_OFFSET = 0.025  # largest distance from the center of a cell of the 3 x 3 grid


@configurable
class Shapes(ImageCorpus):
    """Images of one colored shape on a dark background, with captions such as "a red square at the top left".

    Color, shape and position (one of nine) are drawn uniformly, 216 captions in all; size, exact position, background
    and noise vary between images. The caption depends on nothing but the image.

    Args:
        num_images: Number of images.
        seed: Seed of the images, equal on every machine. It is independent of the seed of the run, which shuffles them.
    """

    def __init__(self, num_images: int = 4096, seed: int = 0):
        require(num_images > 0, "num_images", f"must be positive, not {num_images}")
        self.num_images = num_images
        self.seed = seed

    def captioned_images(self, image_size: tuple[int, int]) -> list[CaptionedImage]:
        """Returns all images; image i does not depend on `num_images`.

        Args:
            image_size: Height and width of the images in pixels.
        """
        return [self._draw(index, image_size) for index in range(self.num_images)]

    def _draw(self, index: int, image_size: tuple[int, int]) -> CaptionedImage:
        draws = random_integers(derive_seed(self.seed, "shape", index), np.arange(7), 2**32) / 2**32  # in [0, 1)
        color, shape, position = (
            choices[int(draw * len(choices))]
            for choices, draw in zip((list(COLORS), SHAPES, POSITIONS), draws, strict=False)
        )
        radius = _RADII[0] + draws[3] * (_RADII[1] - _RADII[0])
        middles = (np.array(divmod(POSITIONS.index(position), 3)) + 0.5) / 3 + (2 * draws[4:6] - 1) * _OFFSET
        rows, columns = (
            ((np.arange(length) + 0.5) / length - middle) / radius
            for length, middle in zip(image_size, middles, strict=True)
        )
        image = np.full((*image_size, 3), int(draws[6] * _MAX_BACKGROUND))
        image[shape_mask(shape, rows[:, None], columns[None, :])] = COLORS[color]
        noise = random_integers(derive_seed(self.seed, "noise", index), np.arange(image.size), 2 * _NOISE + 1) - _NOISE
        pixels = (image + noise.reshape(image.shape)).clip(0, 255).astype(np.uint8)
        return CaptionedImage(f"shape {index}", pixels, f"a {color} {shape} at the {position}")


def shape_mask(shape: str, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Returns the mask of a shape of radius 1 around the origin, (h, w) bool.

    Args:
        shape: One of `SHAPES`.
        rows: Vertical coordinates, top to bottom, (h, 1).
        columns: Horizontal coordinates, (1, w).
    """
    away_row, away_column = np.abs(rows), np.abs(columns)
    masks = {
        "square": (away_row <= 0.9) & (away_column <= 0.9),
        "circle": rows**2 + columns**2 <= 1.0,
        "triangle": (away_row <= 1.0) & (away_column <= (rows + 1.0) / 2),
        "cross": ((away_row <= 0.3) & (away_column <= 1.0)) | ((away_column <= 0.3) & (away_row <= 1.0)),
    }
    return masks[shape]
