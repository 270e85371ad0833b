"""Batches of images with captions."""

import functools
import json
import math
import re
import sys

import numpy as np
import pytest
import torch

from ml.data import Batch, ByteTokenizer, DataError, ImageFormat, ImageTextData, ImageTextFiles, RandomWindows, Shapes
from ml.data.corpora.image_files import CaptionedImage, ImageCorpus, resized
from ml.data.corpora.synthetic_shapes import COLORS, POSITIONS, SHAPES, shape_mask
from ml.data.datasets.images import hold_out, to_gray

IGNORED = -100


class Given(ImageCorpus):
    """Captions given by a test; image i has the value i everywhere."""

    def __init__(self, captions, images=None):
        self.captions = captions
        self.images = range(len(captions)) if images is None else images

    def captioned_images(self, image_size):
        return [
            CaptionedImage(f"image {image}", np.full((*image_size, 3), image, dtype=np.uint8), caption)
            for image, caption in zip(self.images, self.captions, strict=True)
        ]


def data(captions, images=None, **options):
    settings = {"validation_fraction": 0.0, **options}
    return ImageTextData(corpus=lambda: Given(captions, images), **settings)


def format_of(token_id=256, tokens_per_image=4, size=(2, 3)):
    return ImageFormat(token_id, tokens_per_image, (3, *size))


FORMAT = format_of()


def rows_of(batch):
    """Returns caption tokens, positions of image tokens and the value of the image, row by row."""
    for tokens, targets, image in zip(batch.tokens, batch.targets, batch.images, strict=True):
        yield tokens.tolist(), targets.tolist(), image


def test_a_row_is_the_image_the_caption_and_the_end_with_targets_on_the_caption():
    dataset = data(["ab", "cdef"], separator="|").open(9, 0, FORMAT)
    batch = dataset.batch(0, 2)
    found = {tuple(tokens): tuple(targets) for tokens, targets, _ in rows_of(batch)}
    pad, i = IGNORED, 256
    a, b, c, d, e, f, end = b"abcdef|"
    assert found == {
        (i, i, i, i, a, b, 0, 0, 0): (pad, pad, pad, a, b, end, pad, pad, pad),
        (i, i, i, i, c, d, e, f, 0): (pad, pad, pad, c, d, e, f, end, pad),
    }
    assert batch.num_targets == 8
    assert bytes(dataset.train.tokens) == b"ab|cdef|"
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64


def test_each_row_has_its_image_centered_around_zero():
    captions = [chr(65 + number) for number in range(20)]
    batch = data(captions, pixel_mean=0.25, pixel_std=2.0).open(8, 1, FORMAT).batch(0, 20)
    assert batch.images.shape == (20, 3, 2, 3)
    assert batch.images.dtype == torch.float32
    assert batch.images_per_sequence == (1,) * 20
    for tokens, _, image in rows_of(batch):
        expected = ((tokens[4] - 65) / 255 - 0.25) / 2.0
        torch.testing.assert_close(image, torch.full((3, 2, 3), expected), rtol=0, atol=1e-7)  # float32 of 0.2


def test_the_planes_of_an_image_are_its_color_channels():
    corpus = Given(["a"])
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    corpus.captioned_images = lambda size: [CaptionedImage("image", pixels, "a")]
    whole = ImageTextData(corpus=lambda: corpus, pixel_mean=0.0, pixel_std=1.0)
    image = whole.open(4, 0, format_of(tokens_per_image=1)).batch(0, 1).images[0]
    for row, column, color in np.ndindex(2, 3, 3):
        assert round(image[color, row, column].item() * 255) == pixels[row, column, color]


@pytest.mark.parametrize("sampling", [None, RandomWindows])
def test_a_batch_is_a_pure_function_of_data_seed_and_index(sampling):
    options = {} if sampling is None else {"sampling": sampling}
    captions = [f"caption {number}" for number in range(40)]
    first, second, other = (data(captions, **options).open(20, seed, FORMAT) for seed in (1, 1, 2))
    expected = [first.batch(4 * step, 4) for step in range(30)]
    for step in (29, 3, 17, 3):
        assert torch.equal(second.batch(4 * step, 4).tokens, expected[step].tokens)
        assert torch.equal(second.batch(4 * step, 4).images, expected[step].images)
    assert not all(torch.equal(other.batch(4 * step, 4).tokens, expected[step].tokens) for step in range(30))
    assert torch.equal(first.batch(0, 8).images, torch.cat([batch.images for batch in expected[:2]]))


def test_an_epoch_shows_each_caption_once():
    dataset = data([chr(65 + number) for number in range(13)]).open(8, 3, FORMAT)
    for epoch in range(3):
        assert sorted(dataset.batch(13 * epoch, 13).tokens[:, 4].tolist()) == list(range(65, 78))


@pytest.mark.parametrize("num_tokens", [None, 1, 3, 7, 8, 9, 16, 10_000])
@pytest.mark.parametrize("size", [1, 2, 100])
def test_validation_predicts_all_captions_once_in_order(num_tokens, size):
    captions = ["aa", "bbb", "c", "dddd", "e", "ffff", "g", "hh", "iii", "jj"]
    dataset = data(captions, validation_fraction=0.5).open(12, 0, FORMAT)
    held_out = bytes(dataset.validation.tokens).split(b"\0")[:-1]
    assert len(held_out) == 5
    ends = np.cumsum([len(caption) + 1 for caption in held_out])
    wanted = len(ends) if num_tokens is None else max(1, sum(end <= num_tokens for end in ends))
    batches = list(dataset.validation_batches(size, num_tokens))
    targets = torch.cat([batch.targets.flatten() for batch in batches])
    counted = targets[targets != IGNORED].tolist()
    assert bytes(counted) == b"".join(caption + b"\0" for caption in held_out[:wanted])
    assert sum(batch.num_targets for batch in batches) == len(counted) == dataset.validation_bytes(num_tokens)
    assert all(len(batch.tokens) <= size for batch in batches)
    assert sum(len(batch.images) for batch in batches) == wanted


def test_all_captions_of_an_image_are_in_the_same_split():
    images = [number // 3 for number in range(90)]
    captioned = data([f"caption {number}" for number in range(90)], images).corpus.captioned_images((1, 1))
    train, held_out = hold_out(captioned, 0.2)
    names = [{image.name for image in side} for side in (train, held_out)]
    assert not names[0] & names[1]
    assert len(names[1]) == 6
    assert [len(train), len(held_out)] == [72, 18]
    assert hold_out(captioned, 0.0) == (captioned, [])
    assert len({image.name for image in hold_out(captioned[:6], 0.01)[1]}) == 1  # and not none of the two
    assert hold_out(captioned[:3], 0.9)[1] == captioned[:3]


def test_an_image_with_several_captions_is_stored_once():
    dataset = data(["a", "b", "c"], images=[0, 0, 1]).open(8, 0, FORMAT)
    assert dataset.describe()["train_images"] == 2
    batch = dataset.batch(0, 3)
    shown = {chr(tokens[4]): round((image.mean().item() * 0.5 + 0.5) * 255) for tokens, _, image in rows_of(batch)}
    assert shown == {"a": 0, "b": 0, "c": 1}


def test_the_hash_depends_on_the_data_and_not_on_the_order():
    original = data(["a", "b"]).open(6, 0, FORMAT).sha256
    assert data(["a", "b"]).open(9, 5, FORMAT).sha256 == original
    changes = [
        data(["a", "c"]), data(["ab", ""]), data(["a", "b"], images=[0, 2]), data(["a", "b"], images=[0, 0]),
        data(["a", "b"], separator=""), data(["a", "b"], pixel_mean=0.1),
        data(["a", "b"], validation_fraction=0.5),
    ]  # fmt: skip
    hashes = [changed.open(6, 0, FORMAT).sha256 for changed in changes]
    formats = [format_of(300), format_of(tokens_per_image=3), format_of(size=(3, 2))]
    hashes += [data(["a", "b"]).open(6, 0, images).sha256 for images in formats]
    assert len({original, *hashes}) == len(changes) + len(formats) + 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"captions": ["a", "b", "c"], "images": [0, 0, 1]}, {"captions": ["a", "b", "c"], "images": [0, 1, 1]}),
        ({"captions": ["ab", "c"], "separator": ""}, {"captions": ["a", "bc"], "separator": ""}),
    ],
    ids=["which image", "which caption"],
)
def test_the_hash_depends_on_the_pairing(first, second):
    assert data(**first).open(6, 0, FORMAT).sha256 != data(**second).open(6, 0, FORMAT).sha256


@pytest.mark.parametrize("token_id", [7, 255, 256, 300])
def test_the_image_token_is_at_the_image_positions(token_id):
    assert (data(["a"]).open(8, 0, format_of(token_id)).batch(0, 1).tokens[0, :4] == token_id).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"captions": []}, "no image is left to train on"),
        ({"captions": ["short", "longer"]}, r"caption of image 1 and its image take 10 tokens: raise .*, which is 9"),
        ({"captions": ["ab", "xyz"], "token_id": 121}, "caption of image 1 has token 121, which stands for images"),
        ({"captions": ["ab"], "token_id": 0}, "caption of image 0 has token 0"),
    ],
)
def test_invalid_captions_are_named(options, message):
    token_id = options.pop("token_id", 256)
    with pytest.raises(DataError, match=message):
        data(**options).open(9, 0, format_of(token_id))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, "the model takes none"),
        (ImageFormat(256, 4, (2, 2, 3)), "its images have 3 channels, or 1 as grayscale; the model takes 2"),
    ],
)
def test_a_model_with_other_images_or_none_is_named(images, message):
    with pytest.raises(DataError, match=message):
        data(["a"]).open(8, 0, images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_fraction": 1.01}, r"validation_fraction must be in \[0, 1\]"),
        ({"pixel_std": 0.0}, "pixel_std must be positive"),
        ({"pixel_mean": math.nan}, "pixel_mean must be finite"),
        ({"corpus": functools.partial(Shapes, num_images=0)}, "num_images must be positive"),
        ({"corpus": ImageTextFiles}, "path must name a file of JSON lines"),
    ],
)
def test_invalid_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ImageTextData(**options)


def test_a_model_with_one_channel_gets_brightness():
    colors = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], dtype=np.uint8)
    assert to_gray(colors)[..., 0].tolist() == [[76, 150], [29, 255]]
    batch = data(["a", "b"]).open(8, 0, ImageFormat(256, 4, (1, 2, 3))).batch(0, 2)
    assert batch.images.shape == (2, 1, 2, 3)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
def test_a_batch_splits_with_its_images(size):
    counts = (2, 0, 1, 3, 0)
    images = np.arange(6, dtype=np.float64).reshape(6, 1, 1, 1)
    batch = Batch.of(np.arange(10).reshape(5, 2), np.ones((5, 2)), images, counts)
    pieces = batch.split(size)
    assert [len(piece.tokens) for piece in pieces] == [min(size, 5 - first) for first in range(0, 5, size)]
    assert torch.equal(torch.cat([piece.images for piece in pieces]), batch.images)
    assert sum((piece.images_per_sequence for piece in pieces), ()) == counts
    assert all(len(piece.images) == sum(piece.images_per_sequence) for piece in pieces)
    assert batch.images.dtype == torch.float32
    assert set(pieces[0].inputs) == {"tokens", "targets", "images"}
    assert pieces[0].to(torch.device("meta")).images.is_meta


def test_a_batch_of_text_has_no_images():
    batch = Batch.of(np.zeros((3, 2)), np.ones((3, 2)))
    assert set(batch.inputs) == {"tokens", "targets"}
    assert [piece.images for piece in batch.split(2)] == [None, None]
    assert batch.to(torch.device("cpu")).images is None


def test_shapes_look_as_their_captions_say():
    """The brightest pixels have the position, color and shape of the caption."""
    size = 120, 180
    seen = set()
    for image in Shapes(num_images=300, seed=4).captioned_images(size):
        color, shape, place = re.fullmatch(r"a (\w+) (\w+) at the ([\w ]+)", image.caption).groups()
        seen.add((color, shape, place))
        assert image.pixels.shape == (*size, 3)
        near = np.abs(image.pixels.astype(int) - COLORS[color]).max(-1) <= 20  # the noise
        rows, columns = np.nonzero(near)
        row, column = (rows.min() + rows.max() + 1) / 2 / size[0], (columns.min() + columns.max() + 1) / 2 / size[1]
        assert POSITIONS[int(row * 3) * 3 + int(column * 3)] == place
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert height / size[0] == pytest.approx(width / size[1], abs=2 / size[0])  # not truncated at an edge
        # The fraction of its bounding box that a shape fills, within a few pixels.
        share = {"square": 1.0, "circle": math.pi / 4, "triangle": 0.5, "cross": 0.51}[shape]
        assert len(rows) / (height * width) == pytest.approx(share, abs=0.1)
        if shape in ("triangle", "cross"):  # one is full at the bottom, the other at its middle
            fullest = (near.sum(1).argmax() - rows.min() + 0.5) / height
            assert (fullest > 0.75) == (shape == "triangle")
    assert len(seen) > 140  # of 216, 300 draws are expected to find 162, with a standard deviation of 5
    assert {part for found in seen for part in found} == {*COLORS, *SHAPES, *POSITIONS}


def test_shapes_are_a_function_of_seed_and_index():
    few, many, other = (
        Shapes(num_images=number, seed=seed).captioned_images((16, 16)) for number, seed in ((5, 0), (9, 0), (5, 1))
    )
    for image, again in zip(few, many, strict=False):
        assert image.caption == again.caption
        assert np.array_equal(image.pixels, again.pixels)
    assert not all(np.array_equal(image.pixels, again.pixels) for image, again in zip(few, other, strict=True))


def test_a_triangle_points_up():
    rows, columns = np.meshgrid(np.linspace(-1, 1, 21), np.linspace(-1, 1, 21), indexing="ij")
    widths = shape_mask("triangle", rows, columns).sum(1)
    assert widths[0] == 1
    assert widths[-1] == 21
    assert (np.diff(widths) >= 0).all()


@pytest.fixture
def folder(tmp_path):
    """Creates a folder with `images/a.npy` and a file of lines."""
    (tmp_path / "images").mkdir()
    np.save(tmp_path / "images" / "a.npy", np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3))

    def files(*lines):
        path = tmp_path / "captions.jsonl"
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
        return ImageTextFiles(str(path))

    return files


def test_lines_name_images_relative_to_the_file(folder, monkeypatch, tmp_path):
    monkeypatch.chdir("/")
    corpus = folder(
        {"image": "images/a.npy", "text": "eins", "extra": 1}, "", {"image": "images/a.npy", "text": "zwei ü"}, ""
    )
    found = corpus.captioned_images((2, 3))
    assert [(image.name, image.caption) for image in found] == [("images/a.npy", "eins"), ("images/a.npy", "zwei ü")]
    assert np.array_equal(found[0].pixels, np.arange(18).reshape(2, 3, 3))
    absolute = {"image": str(tmp_path / "images" / "a.npy"), "text": "drei"}
    assert np.array_equal(folder(absolute).captioned_images((2, 3))[0].pixels, found[0].pixels)


def test_pillow_formats_are_read(folder, tmp_path):
    image = pytest.importorskip("PIL.Image")
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    image.fromarray(grey).save(tmp_path / "grey.png")
    (found,) = folder({"image": "grey.png", "text": "x"}).captioned_images((2, 3))
    assert np.array_equal(found.pixels, np.repeat(grey[..., None], 3, axis=2))


def test_without_pillow_the_error_names_the_package_to_install(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"pip install 'juniper-trainer\[images\]'"):
        folder({"image": "b.png", "text": "x"}).captioned_images((2, 3))


GOOD = {"image": "images/a.npy", "text": "x"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "'image' is missing"),
        ({"text": "x"}, "'image' is missing"),
        ({"image": "images/a.npy"}, "'text' is missing"),
        ({"image": 3, "text": "x"}, "'image' is missing"),
        ({"image": "images/a.npy", "text": ""}, "'text' is missing"),
        ({"image": "images/none.npy", "text": "x"}, r"cannot read the image .*none\.npy: .*No such file"),
        ({"image": "images/none.png", "text": "x"}, r"cannot read the image .*none\.png: .*No such file"),
        ({"image": "images", "text": "x"}, "cannot read the image"),
        ({"image": "broken.npy", "text": "x"}, r"cannot read the image .*broken\.npy"),
        ({"image": "empty.npy", "text": "x"}, r"cannot read the image .*empty\.npy"),
        ({"image": "broken.png", "text": "x"}, r"cannot read the image .*broken\.png"),
        (
            {"image": "float.npy", "text": "x"},
            r"must be uint8 of shape \(height, width, 3\), not float64 .*\(2, 2, 3\)",
        ),
        ({"image": "flat.npy", "text": "x"}, r"not uint8 of shape \(2, 2\)"),
        ({"image": "nothing.npy", "text": "x"}, r"not uint8 of shape \(0, 2, 3\)"),
        ({"image": "pickled.npy", "text": "x"}, r"cannot read the image .*pickled\.npy"),
    ],
)
def test_a_malformed_line_is_an_error_with_its_place(folder, tmp_path, line, message):
    np.save(tmp_path / "float.npy", np.zeros((2, 2, 3)))
    np.save(tmp_path / "flat.npy", np.zeros((2, 2), dtype=np.uint8))
    np.save(tmp_path / "nothing.npy", np.zeros((0, 2, 3), dtype=np.uint8))
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object))
    for name in ("broken.npy", "broken.png"):
        (tmp_path / name).write_bytes(b"no image")
    (tmp_path / "empty.npy").write_bytes(b"")
    with pytest.raises(DataError, match=message) as error:
        folder(GOOD, "", line).captioned_images((2, 3))
    assert str(error.value).startswith(f"{tmp_path / 'captions.jsonl'}:3")


def test_a_line_with_invalid_utf8_is_an_error_with_its_place(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_bytes(b'\n{"image": "a.npy", "text": "\xff"}\n')
    with pytest.raises(DataError, match=r"captions\.jsonl:2: byte 28 is not UTF-8"):
        ImageTextFiles(str(path)).captioned_images((2, 3))


def test_a_missing_file_of_lines_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no such file or folder: .*none\.jsonl \(ImageTextFiles\.path, from "):
        ImageTextFiles(str(tmp_path / "none.jsonl")).captioned_images((2, 3))


def test_resizing_averages_and_keeps_images_of_equal_size():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    assert resized(pixels, (8, 12)) is pixels
    level = resized(np.full((9, 7, 3), 77, dtype=np.uint8), (4, 5))
    assert (level == 77).all()
    ramp = np.repeat(np.arange(0, 240, 2, dtype=np.uint8)[:, None, None], 3, axis=2).repeat(4, axis=1)  # (120, 4, 3)
    small = resized(ramp, (12, 2))
    assert small.shape == (12, 2, 3)
    means = ramp[:, 0, 0].reshape(12, 10).mean(1)
    # In the middle the weights are symmetric, and the mean of a ramp is its middle; rounding is half a level.
    assert np.abs(small[1:-1, 0, 0] - means[1:-1]).max() <= 0.5
    points = np.zeros((64, 64, 3), dtype=np.uint8)
    points[:, ::8] = 240
    assert (resized(points, (64, 8))[:, 1:-1] == 240 / 8).all()  # none of them falls between the places that are left


def test_large_images_are_resized_to_the_size_of_the_model(folder, tmp_path):
    np.save(tmp_path / "large.npy", np.full((40, 30, 3), 9, dtype=np.uint8))
    whole = ImageTextData(corpus=lambda: folder({"image": "large.npy", "text": "x"}))
    assert whole.open(5, 0, format_of(tokens_per_image=2, size=(4, 6))).batch(0, 2).images.shape == (2, 3, 4, 6)


def test_the_default_data_has_training_and_validation_images():
    dataset = ImageTextData(corpus=functools.partial(Shapes, num_images=60)).open(
        64, 0, format_of(tokens_per_image=16, size=(64, 64))
    )
    described = dataset.describe()
    assert (described["train_images"], described["validation_images"]) == (57, 3)
    assert described["sha256"] == dataset.sha256
    assert described["train_tokens"] == dataset.num_train_tokens
    captions = bytes(dataset.train.tokens.astype(np.uint8)).decode().split("\0")
    assert ByteTokenizer().decode(dataset.train.tokens) == "\0".join(captions)
    assert len(captions) == 58
