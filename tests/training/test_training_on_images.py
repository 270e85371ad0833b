"""Training on images with captions, from the configuration to the loss."""

import io
import math

import pytest
import torch
from saved import trained_model

import ml
from ml.api import build_trainer
from ml.training import RunFolder, train

SHAPES = """
Trainer.model = @VisionLanguageModel
LanguageModel.vocab_size = 257
LanguageModel.hidden_size = 64
decoder/Repeat.num_blocks = 2
Attention.num_heads = 4

VisionEncoder.hidden_size = 64
PatchEmbedding.image_size = (32, 32)
PatchEmbedding.patch_size = 8
PatchEmbedding.position = None
encoder/Repeat.num_blocks = 2
vision/Attention.causal = False
vision/Attention.rotary = @TwoDimensionalRotary
normal.std = 0.05
vision/normal.std = 0.1

Trainer.data = @ImageTextData
Shapes.num_images = 2000

Trainer.num_steps = 200
Trainer.batch_size = 32
Trainer.sequence_length = 56
AdamW.learning_rate = 5e-3
CosineSchedule.warmup_steps = 20
Validation.every = None
"""


def test_a_model_learns_to_say_what_it_sees(tmp_path):
    config = ml.load(["models/llama.gin"], [SHAPES])
    trainer = build_trainer(config)
    data, run = trainer.open_data(), RunFolder(tmp_path)
    train(trainer, data, run, torch.device("cpu"), stream=io.StringIO())
    model = trained_model(trainer, run)
    batches = list(data.training.validation_batches(32))
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
            sums = [model.loss(b.tokens, b.targets, images=change(b.images)).cross_entropy for b in batches]
            losses[kind] = sum(sums).item() / num_targets
    assert run.metrics()[-1]["validation_loss"] == pytest.approx(losses["seen"], rel=1e-4)
    # Over seeds the first comes to 0.6 to 0.8 of it, the second to 1.6 to 2.0, the third to 1.2 and more.
    assert losses["seen"] < 0.9 * blind
    assert losses["shuffled"] > 1.2 * blind
    assert losses["black"] > blind


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
        ("PatchEmbedding.num_channels = 2", "its images have 3 channels, or 1 as grayscale; the model takes 2"),
        ("PatchEmbedding.patch_size = 7", "patch_size must divide the image_size 32 x 32, not be 7"),
        ("VisionLanguageModel.image_token_id = 257", "image_token_id must be one of the 257 tokens"),
        ("Trainer.model = @LanguageModel", "it has images, and the model takes none"),
    ],
)
def test_what_does_not_fit_is_found_when_the_configuration_is_loaded(binding, message):
    with pytest.raises(ml.ConfigError, match=message):
        ml.load(["models/llama.gin"], [SHAPES, binding], allow_unused_bindings=True)


def test_a_model_with_eyes_may_be_trained_on_text_alone():
    bindings = [SHAPES, "Trainer.data = @TextData"]
    trainer = build_trainer(ml.load(["models/llama.gin"], bindings))
    assert trainer.model.tokens_per_image == 16
