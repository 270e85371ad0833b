"""A language model with images in it: against the transformers library, and where the images go."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from oracles import LLAMA_NAMES, with_weights
from vision_oracles import (
    CLOSE,
    IMAGE,
    LLAVA_NAMES,
    PIXTRAL_NAMES,
    VOCABULARY,
    assert_same_gradients,
    llava_like,
    llava_oracle,
    tensors,
)

from ml.blocks import DecoderBlock, Repeat
from ml.layers import MLP, Attention, Cache, Context, TwoDimensionalRotary
from ml.layers.vision import PatchEmbedding
from ml.models import LanguageModel, materialize, named_parameters_with_scales
from ml.models.vision_encoder import VisionEncoder
from ml.models.vision_language_model import VisionLanguageModel

LAYOUTS = {  # an image takes two tokens
    "one image a row": ["iittttttttttt", "tttiitttttttt"],
    "several images in a row": ["iiiittttiit", "tiitttttttt"],
    "rows without": ["tttttt", "ttiitt", "tttttt"],
    "images alone": ["iiii", "iiii"],
}


def tokens_of(layout: list[str], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, IMAGE, (len(layout), len(layout[0])), generator=generator)
    return tokens.masked_fill(is_image(layout), IMAGE)


def is_image(layout: list[str]) -> torch.Tensor:
    return torch.tensor([[letter == "i" for letter in row] for row in layout])


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_whole_is_llava_with_a_tower_of_pixtral(layout):
    oracle = llava_oracle()
    names = {**LLAVA_NAMES, **PIXTRAL_NAMES, **LLAMA_NAMES}
    model = with_weights(llava_like(oracle.config, (4, 8)), tensors(oracle, names))
    tokens, targets = tokens_of(layout), tokens_of(layout, seed=1).masked_fill(is_image(layout), -100)
    targets[0, -1] = 3
    num_images = int(is_image(layout).sum()) // 2
    images = torch.randn(num_images, 3, 4, 8, generator=torch.Generator().manual_seed(2))
    logits = oracle(tokens, pixel_values=images, image_sizes=torch.tensor([[4, 8]] * num_images)).logits
    torch.testing.assert_close(model(tokens, images=images), logits, **CLOSE)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    expected.backward()
    loss = model.loss(tokens, targets, images=images).mean
    loss.backward()
    torch.testing.assert_close(loss, expected, **CLOSE)
    assert_same_gradients(model, tensors(oracle, names, gradients=True))


def small(**options) -> VisionLanguageModel:
    """A model of width 16 whose images have two patches."""
    vision = vision_of(partial(Attention, num_heads=2, causal=False, rotary=TwoDimensionalRotary))
    parts = {"language_model": small_language_model, "vision": vision, **options}
    return VisionLanguageModel(image_token_id=IMAGE, **parts)


def small_language_model() -> LanguageModel:
    block = partial(DecoderBlock, mixer=partial(Attention, num_heads=2), mlp=partial(MLP, intermediate_size=24))
    return LanguageModel(vocab_size=VOCABULARY, hidden_size=16, decoder=partial(Repeat, block=block, num_blocks=2))


def vision_of(mixer, **options) -> partial:
    block = partial(DecoderBlock, mixer=mixer, mlp=partial(MLP, intermediate_size=24))
    patches = partial(PatchEmbedding, image_size=(2, 4), patch_size=2)
    encoder = partial(Repeat, block=block, num_blocks=1)
    return partial(VisionEncoder, hidden_size=8, patches=patches, encoder=encoder, **options)


def random_images(number: int) -> torch.Tensor:
    return torch.randn(number, 3, 2, 4, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_images_take_the_places_of_their_tokens_in_order(layout):
    """`masked_scatter` is the reference, for the values and for the gradients."""
    model, tokens, mask = materialize(small()), tokens_of(layout), is_image(layout)
    images = random_images(int(mask.sum()) // 2)
    context = Context()
    before = model.embeddings(tokens, context)
    expected = before.masked_scatter(mask[..., None], model.vision(images))
    actual = model.embed(tokens, context, images=images)
    assert torch.equal(actual, expected)
    gradient = torch.randn(actual.shape, generator=torch.Generator().manual_seed(4))
    weights = list(model.vision.parameters()) + list(model.embeddings.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(actual, weights, gradient), torch.autograd.grad(expected, weights, gradient), strict=True
    ):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_a_changed_image_changes_what_comes_after_it_in_its_row_and_nothing_else():
    model, layout = materialize(small(), seed=1), ["tttttttt", "iitttiit", "tiittttt"]
    tokens, images = tokens_of(layout), random_images(3)
    before = model(tokens, images=images)
    images[1] += 1.0  # the second of the second row, at places 5 and 6
    changed = (model(tokens, images=images) - before).abs().amax(-1)
    assert (changed > 0).tolist() == [[False] * 8, [False] * 5 + [True] * 3, [False] * 8]


@torch.no_grad()
def test_decoding_continues_after_images_and_reads_a_generated_image_token_as_a_token():
    model, layout = materialize(small()).eval(), ["iitttt", "tiittt"]
    tokens, images = tokens_of(layout), random_images(2)
    tokens = torch.cat((tokens, torch.tensor([[5], [7]])), dim=1)
    expected, cache = model(tokens, images=images), Cache()
    steps = [
        model(tokens[:, :4], cache=cache, images=images),
        *(model(t, cache=cache) for t in tokens[:, 4:].split(2, 1)),
    ]
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, **CLOSE)
    assert model(torch.full((2, 1), IMAGE), cache=cache).isfinite().all()


@pytest.mark.parametrize(
    ("layout", "num_images", "message"),
    [
        (["iit", "iit"], 1, r"1 images take 2 image tokens \(2 each\), and there are 4"),
        (["iit", "itt"], 2, r"2 images take 4 image tokens \(2 each\), and there are 3"),
        (["ttt", "iit"], 0, r"0 images take 0 image tokens \(2 each\), and there are 2"),
        (["ttt", "ttt"], 1, r"1 images take 2 image tokens \(2 each\), and there are 0"),
        (["ttt", "iit"], None, "0 images take 0 image tokens"),
    ],
)
def test_image_tokens_that_do_not_fit_the_images_are_an_error(layout, num_images, message):
    model = materialize(small())
    images = None if num_images is None else random_images(num_images)
    with pytest.raises(ValueError, match=message):
        model(tokens_of(layout), images=images)
    with pytest.raises(ValueError, match=message):
        model.loss(tokens_of(layout), tokens_of(layout), images=images)


def test_text_alone_is_what_the_language_model_makes_of_it():
    model = materialize(small(), seed=5)
    language = materialize(small_language_model(), seed=5)
    tokens = tokens_of(["tttttt", "tttttt"])
    assert torch.equal(model(tokens), language(tokens))
    names = [name for name, _ in model.named_parameters() if not name.startswith("vision.")]
    assert names == [name for name, _ in language.named_parameters()]


def test_the_meta_device_a_deep_copy_and_frozen_parts():
    with torch.device("meta"):
        model = small(vision=vision_of(partial(Attention, num_heads=2, causal=False, rotary=None), lr_scale=0.0))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.tokens_per_image == 2
    assert model.image_shape == (3, 2, 4)
    for scaled in named_parameters_with_scales(model):
        frozen = scaled.name.startswith("vision.")
        assert scaled.parameter.requires_grad != frozen
        assert scaled.lr_scale == (0.0 if frozen else 1.0)
    model, tokens, images = materialize(model), tokens_of(["iit", "tii"]), random_images(2)
    duplicate = copy.deepcopy(model)
    assert torch.equal(duplicate(tokens, images=images), model(tokens, images=images))
    model.loss(tokens, tokens, images=images).mean.backward()
    assert {name for name, p in model.named_parameters() if p.grad is None} == {
        name for name, _ in model.named_parameters() if name.startswith("vision.")
    }


def test_images_join_the_residual_stream_in_its_type():
    model = materialize(small()).bfloat16()
    model.vision.float()
    assert model.embed(tokens_of(["iit"]), Context(), images=random_images(1)).dtype == torch.bfloat16


@pytest.mark.parametrize("pure", [False, True], ids=["autocast", "bfloat16 weights"])
def test_bfloat16_is_near_float32(pure):
    model, layout = materialize(small()), LAYOUTS["several images in a row"]
    tokens, images = tokens_of(layout), random_images(4)
    expected = model.loss(tokens, tokens, images=images)
    with torch.autocast("cpu", torch.bfloat16, enabled=not pure):
        sums = (model.bfloat16() if pure else model).loss(tokens, tokens, images=images)
    sums.mean.backward()
    torch.testing.assert_close(sums.total, expected.total, rtol=1e-3, atol=0)  # bfloat16 logits: 2^-9 of a few units
    assert all(p.grad.dtype == (torch.bfloat16 if pure else torch.float32) for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_token_id": VOCABULARY}, "image_token_id must be one of the 61 tokens of the vocabulary, not 61"),
        ({"image_token_id": -1}, "image_token_id must be one of"),
        ({"vision": vision_of(partial(Attention, num_heads=2))}, r"encoder hides from a patch .*\.causal = False"),
        ({"vision": vision_of(partial(Attention, num_heads=2, causal=False))}, "@TwoDimensionalRotary"),
        ({"vision": partial(VisionEncoder, hidden_size=0)}, "hidden_size must be positive"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        VisionLanguageModel(**{"image_token_id": IMAGE, "language_model": small_language_model, **options})


def test_a_language_model_with_other_parts_is_refused():
    model = small_language_model()
    model.extra = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"has parts that a VisionLanguageModel does not have: extra"):
        small(language_model=lambda: model)
