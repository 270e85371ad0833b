"""Inputs of the shapes of a run, for steps on tensors without values."""

from typing import Any

import torch

from ml.data import Batch
from ml.layers.loss import Teacher
from ml.layers.preference import PairScores
from ml.models import LanguageModel
from ml.training.guide import Guide
from ml.training.preference import pairs_per_row
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
    if trainer.data.has_pairs:
        sides = (torch.arange(num_tokens) >= num_tokens // 2).long().expand(num_sequences, -1)
        batch = batch._replace(documents=sides, pairs_per_sequence=(1,) * num_sequences)
    elif trainer.data.separates_documents:
        batch = batch._replace(documents=torch.zeros_like(tokens))
    if trainer.image_format is not None:
        images = torch.zeros(num_sequences, *trainer.image_format.shape)
        batch = batch._replace(images=images, images_per_sequence=(1,) * num_sequences)
    return batch


class PlaceholderGuide(Guide):
    """Stands in for the teacher or the reference of a run, without a model.

    Args:
        trainer: The settings of the run, with distillation or preference.
    """

    def __init__(self, trainer: Trainer):
        self._trainer = trainer

    @classmethod
    def of(cls, trainer: Trainer) -> "PlaceholderGuide | None":
        """Returns the placeholder; None for a run without distillation and preference."""
        return None if trainer.distillation is None and trainer.preference is None else cls(trainer)

    def num_units(self, batch: Batch) -> int:
        return batch.num_targets if self._trainer.preference is None else batch.num_pairs

    def inputs(self, batch: Batch, model: LanguageModel) -> dict[str, Any]:
        distillation, preference = self._trainer.distillation, self._trainer.preference
        if preference is not None:
            scores = torch.zeros(len(batch.tokens), pairs_per_row(batch))
            return {"preference": preference.guided(batch, PairScores(scores, scores, scores > 0))}
        assert distillation is not None  # otherwise there is no guide
        logits = torch.empty(*batch.tokens.shape, self._trainer.model.vocab_size)
        return {"teacher": Teacher(logits, distillation.weight, distillation.temperature)}
