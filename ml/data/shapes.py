"""Pictures that a program draws, and what it says of them: image and text to learn from on every machine."""

import itertools

import numpy as np

from ml.config import configurable
from ml.data.image_files import CaptionedImage, ImageCorpus
from ml.data.randomness import derive_seed
from ml.layers.checks import positive

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 215, 50),
    "purple": (150, 50, 190),
    "white": (240, 240, 240),
}
SHAPES = ("square", "circle", "triangle", "cross")
PLACES = {
    (row, column): f"{vertical} {horizontal}".replace("middle middle", "middle").strip()
    for row, vertical in enumerate(("top", "middle", "bottom"))
    for column, horizontal in enumerate(("left", "middle", "right"))
}
_NOISE = 12.0  # standard deviation of each value of a pixel
_BACKGROUNDS = 60  # the darkest levels of grey


@configurable
class Shapes(ImageCorpus):
    """Images of one coloured shape on a dark ground, with captions such as "a red square at the top left".

    Shape, colour and place (one of nine) are drawn alike; size, exact place, ground and noise differ from image to
    image. Only the image tells a caption from the 215 others.

    Args:
        num_images: How many there are.
        seed: Decides the images. It is apart from the seed of the run, which decides their order.
    """

    def __init__(self, num_images: int = 4096, seed: int = 0):
        self.num_images = positive("num_images", num_images)
        self.seed = seed

    def captioned_images(self, image_size: tuple[int, int]) -> list[CaptionedImage]:
        """All of them; number i is the same however many follow it."""
        return [self._draw(number, image_size) for number in range(self.num_images)]

    def _draw(self, number: int, image_size: tuple[int, int]) -> CaptionedImage:
        random = np.random.default_rng(derive_seed(self.seed, "shapes", number))
        colour, shape = random.choice(list(COLOURS)), random.choice(SHAPES)
        row, column = random.integers(3, size=2).tolist()
        height, width = image_size
        radius = random.uniform(0.09, 0.15)  # in heights and widths of the image, as are the offsets
        offset_row, offset_column = random.uniform(-0.025, 0.025, size=2)
        inside = shape_mask(
            shape,
            ((np.arange(height) + 0.5) / height - (2 * row + 1) / 6 - offset_row)[:, None] / radius,
            ((np.arange(width) + 0.5) / width - (2 * column + 1) / 6 - offset_column)[None, :] / radius,
        )
        image = np.full((height, width, 3), random.uniform(0, _BACKGROUNDS))
        image[inside] = COLOURS[colour]
        image += random.normal(0.0, _NOISE, image.shape)
        caption = f"a {colour} {shape} at the {PLACES[row, column]}"
        return CaptionedImage(f"shape {number}", image.round().clip(0, 255).astype(np.uint8), caption)


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
