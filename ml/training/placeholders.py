"""Inputs of the shapes of a run, for steps on tensors without values."""

import torch

from ml.data import Batch
from ml.layers.loss import Teacher
from ml.training.trainer import Trainer


def placeholder_batch(trainer: Trainer, num_sequences: int, num_tokens: int) -> Batch:
    """Returns a batch whose positions all have a target, with documents and images if the run has them.

    Args:
        trainer: The settings of the run.
        num_sequences: Number of sequences, each with an image in a run on images.
        num_tokens: Length of the sequences.
    """
    tokens = torch.zeros(num_sequences, num_tokens, dtype=torch.int64)
    batch = Batch(tokens, torch.zeros_like(tokens), tokens.numel())
    if trainer.data.separates_documents:
        batch = batch._replace(documents=torch.zeros_like(tokens))
    if trainer.image_format is not None:
        images = torch.zeros(num_sequences, *trainer.image_format.shape)
        batch = batch._replace(images=images, images_per_sequence=(1,) * num_sequences)
    return batch


def placeholder_teacher(trainer: Trainer, batch: Batch) -> Teacher | None:
    """Returns what a teacher would say of a batch; None for a run without distillation."""
    distillation = trainer.distillation
    if distillation is None:
        return None
    logits = torch.empty(*batch.tokens.shape, trainer.model.vocab_size)
    return Teacher(logits, distillation.weight, distillation.temperature)
