"""Patch embedding against a strided convolution, and the image projector."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ml.layers import LayerNorm, Linear, PositionEmbedding
from ml.layers.vision import PatchEmbedding, Projector
from ml.models import materialize

H = 10
CASES = {
    "square": {"image_size": (12, 12), "patch_size": 4},
    "wide": {"image_size": (6, 15), "patch_size": 3},
    "high": {"image_size": (20, 5), "patch_size": 5},
    "one channel": {"image_size": (4, 8), "patch_size": 2, "num_channels": 1},
    "single pixels": {"image_size": (3, 2), "patch_size": 1},
    "one patch": {"image_size": (7, 7), "patch_size": 7, "num_channels": 5},
    "no bias": {"image_size": (4, 6), "patch_size": 2, "linear": partial(Linear, bias=False)},
}


def build(constructor=PatchEmbedding, *shapes, **options) -> nn.Module:
    """Builds in float64, with all weights random."""
    layer = materialize(constructor(*(shapes or (H,)), **options)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


def random_images(layer: PatchEmbedding, number: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(number, *layer.image_shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_patches_are_a_strided_convolution_with_the_same_weights(options):
    layer = build(position=None, **options)
    size, bias = layer.patch_size, layer.projection.bias
    convolution = nn.Conv2d(layer.num_channels, H, size, stride=size, bias=bias is not None).double()
    with torch.no_grad():
        convolution.weight.copy_(layer.projection.weight.view_as(convolution.weight))
        if bias is not None:
            convolution.bias.copy_(bias)
    images = random_images(layer)
    inputs = [images.clone().requires_grad_() for _ in range(2)]
    expected = convolution(inputs[0]).flatten(2).mT  # row by row
    patches = layer(inputs[1])
    assert patches.shape == (3, layer.num_patches, H)
    torch.testing.assert_close(patches, expected)  # float64 throughout
    gradient = torch.randn(patches.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected.backward(gradient)
    patches.backward(gradient)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    torch.testing.assert_close(layer.projection.weight.grad, convolution.weight.grad.flatten(1))
    if bias is not None:
        torch.testing.assert_close(bias.grad, convolution.bias.grad)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_positions_encode_the_location_of_a_patch_in_the_image(options):
    layer = build(**{**options, "position": None, "num_channels": 1})
    size, places = layer.patch_size, layer.positions(torch.device("cpu"))
    assert places.shape == (layer.num_patches, 2)
    height, width = layer.image_size
    image = torch.arange(height * width, dtype=torch.float64).view(1, 1, height, width)  # each pixel has its own value
    for patch, (row, column) in zip(layer.flat_patches(image)[0], places.tolist(), strict=True):
        there = image[0, 0, row * size : (row + 1) * size, column * size : (column + 1) * size]
        assert torch.equal(patch, there.flatten())


def test_learned_positions_are_added_before_the_normalization():
    layer = build(image_size=(4, 6), patch_size=2, normalization=LayerNorm)
    images = random_images(layer)
    assert layer.position.weight.shape == (6, H)
    x = F.linear(layer.flat_patches(images), layer.projection.weight, layer.projection.bias) + layer.position.weight
    torch.testing.assert_close(layer(images), F.layer_norm(x, (H,), layer.norm.weight, layer.norm.bias, 1e-5))


def test_positions_are_as_many_as_patches_whatever_their_default():
    layer = PatchEmbedding(H, image_size=(32, 48), patch_size=8, position=partial(PositionEmbedding, lr_scale=0.5))
    assert layer.position.weight.shape == (24, H)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_are_converted_to_the_type_of_the_weights(dtype):
    layer = build(image_size=(4, 6), patch_size=2).to(dtype)
    assert layer(random_images(layer).float()).dtype == dtype


def test_autocast_multiplies_in_bfloat16():
    layer = build(image_size=(4, 6), patch_size=2, position=None).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(random_images(layer).float()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("shape", "given"),
    [((2, 3, 6, 4), "(2, 3, 6, 4)"), ((2, 1, 4, 6), "(2, 1, 4, 6)"), ((3, 4, 6), "(3, 4, 6)"), ((3, 4, 6, 3), "")],
)
def test_images_of_another_shape_are_refused(shape, given):
    with pytest.raises(ValueError, match=r"images must have the shape \(I, 3, 4, 6\), not") as error:
        build(image_size=(4, 6), patch_size=2)(torch.zeros(shape))
    assert str(error.value).endswith(given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (64, 0)}, "image_size must be positive, not 0"),
        ({"patch_size": 0}, "patch_size must be positive"),
        ({"num_channels": -1}, "num_channels must be positive"),
        ({"image_size": (64, 40)}, "patch_size must divide the image_size 64 x 40, not be 16"),
        ({"image_size": (40, 64)}, "patch_size must divide the image_size 40 x 64, not be 16"),
        ({"lr_scale": -1.0}, "lr_scale must be at least 0"),
    ],
)
def test_invalid_options_of_patches_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PatchEmbedding(H, **options)


@pytest.mark.parametrize("intermediate_size", [None, 3])
def test_a_projector_is_two_linear_layers_around_a_gelu(intermediate_size):
    layer = build(Projector, 6, 9, intermediate_size=intermediate_size)
    width = intermediate_size or 9
    assert (layer.first.weight.shape, layer.second.weight.shape) == ((width, 6), (9, width))
    plain = nn.Sequential(nn.Linear(6, width), nn.GELU(), nn.Linear(width, 9)).double()
    plain.load_state_dict(
        {name.replace("first", "0").replace("second", "2"): w for name, w in layer.state_dict().items()}
    )
    x = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x), plain(x))


def test_a_projector_has_a_width():
    with pytest.raises(ValueError, match="intermediate_size must be positive, not 0"):
        Projector(4, 4, intermediate_size=0)
