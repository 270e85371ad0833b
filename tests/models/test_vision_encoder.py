"""Vision towers against the transformers library, with its weights, in float32."""

from functools import partial

import pytest
import torch
from oracles import with_weights
from transformers import PixtralVisionModel, SiglipVisionConfig, SiglipVisionModel
from vision_oracles import (
    CLOSE,
    PIXTRAL_NAMES,
    SIGLIP_NAMES,
    assert_same_gradients,
    pixtral_config,
    pixtral_like,
    siglip_like,
    tensors,
    unsettled,
)

from ml.blocks import DecoderBlock, Repeat
from ml.layers import MLP, Attention, TwoDimensionalRotary
from ml.layers.vision import PatchEmbedding
from ml.models import flops_per_token
from ml.models.vision_encoder import VisionEncoder


def assert_same_encoder(encoder, weights, oracle, names, images, expected):
    with torch.device("meta"):
        model = encoder(7)
    model = with_weights(model, weights)
    actual = model(images)
    torch.testing.assert_close(actual, expected, **CLOSE)
    gradient = torch.randn(actual.shape, generator=torch.Generator().manual_seed(5))
    expected.backward(gradient)
    actual.backward(gradient)
    assert_same_gradients(model, tensors(oracle, names, gradients=True))


PIXTRALS = {
    "square": ((16, 16), {}),
    "wide": ((8, 20), {}),
    "high, deep": ((24, 4), {"num_hidden_layers": 4, "intermediate_size": 23}),
    "another theta": ((16, 12), {"rope_parameters": {"rope_type": "axial", "rope_theta": 50.0}}),
    "one channel, large heads": ((12, 12), {"num_channels": 1, "num_attention_heads": 2}),
}


@pytest.mark.parametrize(("image_size", "changes"), PIXTRALS.values(), ids=PIXTRALS)
def test_the_encoder_is_the_one_of_pixtral(image_size, changes):
    torch.manual_seed(sum(image_size))
    config = pixtral_config(**changes)
    oracle = unsettled(PixtralVisionModel(config))
    images = torch.randn(3, config.num_channels, *image_size)
    expected = oracle(images).last_hidden_state.view(3, -1, config.hidden_size)  # it takes all images as one sequence
    weights = tensors(oracle, PIXTRAL_NAMES)
    assert_same_encoder(pixtral_like(config, image_size), weights, oracle, PIXTRAL_NAMES, images, expected)


@pytest.mark.parametrize("changes", [{}, {"image_size": 20, "patch_size": 5, "num_hidden_layers": 3}], ids=str)
def test_the_encoder_is_the_one_of_siglip(changes):
    torch.manual_seed(3)
    settings = {
        "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3,
        "image_size": 12, "patch_size": 4, "vision_use_head": False, "attn_implementation": "eager",
    }  # fmt: skip
    config = SiglipVisionConfig(**{**settings, **changes})
    oracle = unsettled(SiglipVisionModel(config))
    images = torch.randn(3, 3, config.image_size, config.image_size)
    expected = oracle(images).last_hidden_state
    weights = tensors(oracle, SIGLIP_NAMES)
    assert_same_encoder(siglip_like(config), weights, oracle, SIGLIP_NAMES, images, expected)


def test_flops_of_a_token_are_its_share_of_one_image_per_sequence():
    patches, length = 6, 50
    sighted = partial(Attention, num_heads=2, causal=False, rotary=TwoDimensionalRotary)
    block = partial(DecoderBlock, mixer=sighted, mlp=partial(MLP, intermediate_size=24))
    encoder = VisionEncoder(
        16,
        hidden_size=8,
        patches=partial(PatchEmbedding, image_size=(4, 6), patch_size=2),
        encoder=partial(Repeat, block=block, num_blocks=1),
    )
    matrices = 12 * 8 + 4 * 8 * 8 + 2 * 8 * 24 + 8 * 16 + 16 * 16  # patches, attention, MLP, adapter
    attention = 12 * 8 * patches  # all patches are visible
    expected = (6 * matrices + attention) * patches / length
    assert flops_per_token(encoder, length) == pytest.approx(expected)
