"""Training on images with captions, from the configuration to the loss."""

import io
import math

import pytest
import torch

import ml
import ml.models.vision_language_model
from ml.api import build_trainer
from ml.training import RunFolder, train

SHAPES = """
Trainer.model = @VisionLanguageModel
LanguageModel.vocab_size = 257
LanguageModel.hidden_size = 64
decoder/Repeat.num_blocks = 2
Attention.num_heads = 4

VisionLanguageModel.image_token_id = 256
VisionEncoder.hidden_size = 64
PatchEmbedding.image_size = (32, 32)
PatchEmbedding.patch_size = 8
PatchEmbedding.position = None
encoder/Repeat.num_blocks = 2
vision/Attention.causal = False
vision/Attention.rotary = @TwoDimensionalRotary
vision/normal.std = 0.1

Trainer.data = @ImageTextData
ImageTextData.image_size = (32, 32)
ImageTextData.tokens_per_image = 16
Shapes.num_images = 2000

Trainer.num_steps = 180
Trainer.batch_size = 32
Trainer.sequence_length = 56
AdamW.learning_rate = 5e-3
CosineSchedule.warmup_steps = 20
Validation.every = None
"""


def test_a_model_learns_to_say_what_it_sees(tmp_path):
    config = ml.load(["models/llama.gin"], [SHAPES])
    trainer = build_trainer(config)
    dataset, run = trainer.open_data(), RunFolder(tmp_path)
    train(trainer, dataset, run, torch.device("cpu"), stream=io.StringIO())
    batches = list(dataset.validation_batches(32))
    num_targets = sum(batch.num_targets for batch in batches)
    # There are 216 captions, each as likely: to a model that sees nothing, each costs the logarithm at least.
    blind = math.log(216) * sum(len(batch.tokens) for batch in batches) / num_targets
    losses = {}
    with torch.no_grad():
        for kind, change in {
            "seen": torch.clone,
            "shuffled": lambda images: images.roll(1, dims=0),
            "black": lambda images: torch.full_like(images, -1.0),
        }.items():
            sums = [trainer.model.loss(b.tokens, b.targets, images=change(b.images)).cross_entropy for b in batches]
            losses[kind] = sum(sums).item() / num_targets
    assert run.metrics()[-1]["validation_loss"] == pytest.approx(losses["seen"], rel=1e-4)
    assert losses["seen"] < 0.75 * blind
    assert losses["shuffled"] > 1.2 * blind
    assert losses["black"] > 1.2 * blind


def test_the_operative_configuration_builds_the_same_run_again():
    config = ml.load(["models/llama.gin"], [SHAPES])
    again = ml.load(bindings=[config.operative])
    assert again.operative == config.operative
    first, second = (dict(ml.build(c).named_parameters()) for c in (config, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("vision/Attention.causal = True", "hides from a patch the patches after it"),
        ("vision/Attention.rotary = @Rotary", "patches have rows and columns"),
        ("ImageTextData.image_token_id = 255", "image_token_id is 255, the model's is 256"),
        ("PatchEmbedding.image_size = (32, 40)", r"image_shape is \(3, 32, 32\), the model's is \(3, 32, 40\)"),
        ("PatchEmbedding.num_channels = 1", r"image_shape is \(3, 32, 32\), the model's is \(1, 32, 32\)"),
        ("PatchEmbedding.patch_size = 16", "tokens_per_image is 16, the model's is 4"),
        ("PatchEmbedding.patch_size = 7", "patch_size must divide the image_size 32 x 32, not be 7"),
        ("LanguageModel.vocab_size = 256", "image_token_id must be one of the 256 tokens"),
        ("Trainer.model = @LanguageModel", "image_token_id is 256, the model's is None"),
    ],
)
def test_what_does_not_fit_is_found_when_the_configuration_is_loaded(binding, message):
    with pytest.raises(ml.ConfigError, match=message):
        ml.load(["models/llama.gin"], [SHAPES, binding], allow_unused_bindings=True)


def test_a_model_with_eyes_may_be_trained_on_text_alone():
    bindings = [SHAPES, "Trainer.data = @TextData"]
    trainer = build_trainer(ml.load(["models/llama.gin"], bindings))
    assert trainer.model.tokens_per_image == 16
