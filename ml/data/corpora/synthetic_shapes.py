"""Pictures that a program draws, and what it says of them: images and text to learn from on every machine."""

import numpy as np

from ml.config import configurable, require
from ml.data.corpora.image_files import CaptionedImage, ImageCorpus
from ml.data.randomness import derive_seed, random_integers

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 215, 50),
    "purple": (150, 50, 190),
    "white": (240, 240, 240),
}
SHAPES = ("square", "circle", "triangle", "cross")
PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")

_NOISE = 20  # the most that is added to a value of a pixel, or taken from it
_BRIGHTEST_GROUND = 60
_RADII = 0.09, 0.14  # in heights and widths of the image, as is
_OFFSET = 0.025  # to either side of the middle of a ninth


@configurable
class Shapes(ImageCorpus):
    """Images of one coloured shape on a dark ground, with captions such as "a red square at the top left".

    Colour, shape and place (one of nine) are drawn alike, which makes 216 captions; size, exact place, ground and noise
    differ from image to image. Nothing but the image tells which caption it is.

    Args:
        num_images: How many there are.
        seed: Decides the images, on any machine. It is apart from the seed of the run, which decides their order.
    """

    def __init__(self, num_images: int = 4096, seed: int = 0):
        require(num_images > 0, "num_images", f"must be positive, not {num_images}")
        self.num_images = num_images
        self.seed = seed

    def captioned_images(self, image_size: tuple[int, int]) -> list[CaptionedImage]:
        """All of them; number i is the same however many follow it."""
        return [self._draw(number, image_size) for number in range(self.num_images)]

    def _draw(self, number: int, image_size: tuple[int, int]) -> CaptionedImage:
        draws = random_integers(derive_seed(self.seed, "shape", number), np.arange(7), 2**32) / 2**32  # in [0, 1)
        colour, shape, place = (
            choices[int(draw * len(choices))]
            for choices, draw in zip((list(COLOURS), SHAPES, PLACES), draws, strict=False)
        )
        radius = _RADII[0] + draws[3] * (_RADII[1] - _RADII[0])
        middles = (np.array(divmod(PLACES.index(place), 3)) + 0.5) / 3 + (2 * draws[4:6] - 1) * _OFFSET
        rows, columns = (
            ((np.arange(length) + 0.5) / length - middle) / radius
            for length, middle in zip(image_size, middles, strict=True)
        )
        image = np.full((*image_size, 3), int(draws[6] * _BRIGHTEST_GROUND))
        image[shape_mask(shape, rows[:, None], columns[None, :])] = COLOURS[colour]
        noise = random_integers(derive_seed(self.seed, "noise", number), np.arange(image.size), 2 * _NOISE + 1) - _NOISE
        pixels = (image + noise.reshape(image.shape)).clip(0, 255).astype(np.uint8)
        return CaptionedImage(f"shape {number}", pixels, f"a {colour} {shape} at the {place}")


def shape_mask(shape: str, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Where a shape of radius 1 around the origin is, for rows (h, 1) from top to bottom and columns (1, w)."""
    away_row, away_column = np.abs(rows), np.abs(columns)
    masks = {
        "square": (away_row <= 0.9) & (away_column <= 0.9),
        "circle": rows**2 + columns**2 <= 1.0,
        "triangle": (away_row <= 1.0) & (away_column <= (rows + 1.0) / 2),
        "cross": ((away_row <= 0.3) & (away_column <= 1.0)) | ((away_column <= 0.3) & (away_row <= 1.0)),
    }
    return masks[shape]
