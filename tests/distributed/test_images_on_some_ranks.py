"""A model that reads images under FSDP, where only some processes have images."""

import pytest
from processes import run_ranks

import ml
from ml.api import build_trainer
from ml.distributed import Layout, World
from ml.distributed.shards import local

SMALL = """
Trainer.batch_size = 2
Trainer.num_steps = 10
CosineSchedule.warmup_steps = 1
Shapes.num_images = 100
Validation.num_tokens = 1
"""


def gradient_and_validation(world):
    """Squared norm of the gradient of a batch with images and one without, and the loss of one held-out caption."""
    trainer = build_trainer(ml.load(["recipes/vision_language.gin"], [SMALL]))
    layout = Layout.of(world, trainer.mesh_sizes(world.size))
    model, data = trainer.start(world.device, layout).model, trainer.open_data()
    with_images = data.training.batch(0, 2)
    text = with_images._replace(tokens=with_images.tokens % 97, images=None, images_per_sequence=())
    for batch in (with_images, text)[layout.data_rank :: layout.num_data_ranks]:
        model.loss(**batch.inputs).total.backward()
    squares = sum(local(p.grad).double().square().sum() for p in model.parameters() if p.grad is not None)
    (one,) = data.validation_sets
    settings = (model, one.dataset, 1, trainer.precision, world.device)
    return layout.sum(squares).item(), one.validation.measure(*settings, layout=layout).loss


def test_a_process_without_images_gathers_the_encoder_too():
    alone = gradient_and_validation(World())
    for found in run_ranks(2, gradient_and_validation, timeout=60.0):
        assert found == pytest.approx(alone, rel=1e-5)
