"""Knowledge distillation from a trained model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ml.config import configurable, require
from ml.data import Batch
from ml.layers.checks import positive_float
from ml.layers.loss import Teacher
from ml.models.language_model import LanguageModel
from ml.training.checkpoints.reference import CheckpointReference, CheckpointSource
from ml.training.errors import RunError
from ml.training.guide import Guide


@configurable(neutral=["teacher"])
class Distillation:
    """Adds the Kullback-Leibler divergence from the predictions of a trained model to the loss (Hinton et al., 2015).

    Args:
        teacher: Folder of the teacher's run, which must use the same vocabulary.
        step: Step of the teacher's checkpoint; None for the newest valid one, which is recorded.
        sha256: Hash of the tensors of the teacher's checkpoint; None for any, which is recorded.
        weight: Weight of the divergence, in (0, 1]; the cross entropy with the targets has weight 1 - `weight`.
        temperature: Divides the logits of both models; the divergence is multiplied by its square.
    """

    def __init__(
        self,
        *,
        teacher: str,
        step: int | None = None,
        sha256: str | None = None,
        weight: float = 0.5,
        temperature: float = 1.0,
    ):
        require(0.0 < weight <= 1.0, "weight", f"must be above 0 and at most 1, not {weight}")
        require(step is None or step > 0, "step", f"must be positive, not {step}")
        self.teacher = teacher
        self.source = CheckpointSource(CheckpointReference(Path(teacher), step, sha256))
        self.weight = weight
        self.temperature = positive_float("temperature", temperature)

    def pins(self, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """Returns step and hash of the teacher's checkpoint, to record; empty if both are set.

        Args:
            recorded: The parameters of the distillation in the run folder that is resumed; empty for a new run.

        Raises:
            RunError: There is no such checkpoint.
        """
        return self.source.pins(recorded, recorded.get("teacher"))

    def adopt(self, earlier: "Distillation") -> None:
        """Takes over the checkpoint that `pins` of these settings, before they were set, has found."""
        self.source.adopt(earlier.source)

    def teach(self, student: LanguageModel, sequence_length: int, model: LanguageModel) -> "TeacherModel":
        """Freezes a loaded model as the teacher of `student`.

        Args:
            student: The model that is trained; may be on the meta device.
            sequence_length: Sequence length of the student in tokens.
            model: The model of the run `teacher`, with the weights of the checkpoint.

        Returns:
            The teacher, which holds the frozen `model`.

        Raises:
            RunError: The vocabulary, the positions or the images of the teacher do not fit the student.
        """
        require_fit(model, f"the teacher {self.teacher}", student, sequence_length)
        return TeacherModel(model.requires_grad_(False), self.weight, self.temperature)


def require_fit(model: LanguageModel, name: str, trained: LanguageModel, sequence_length: int) -> None:
    """Requires that a frozen model reads the same sequences as the one that is trained.

    Args:
        model: The frozen model.
        name: Name of it in errors, such as "the teacher runs/large".
        trained: The model that is trained.
        sequence_length: Its sequence length in tokens.

    Raises:
        RunError: The vocabulary, the positions or the images differ.
    """
    if model.vocab_size != trained.vocab_size:
        sizes = f"{model.vocab_size} tokens, that of the model {trained.vocab_size}"
        raise RunError(f"the vocabulary of {name} has {sizes}")
    longest = model.max_sequence_length
    if longest is not None and longest < sequence_length:
        raise RunError(f"{name} takes {longest} tokens; Trainer.sequence_length is {sequence_length}")
    for parameter, (theirs, ours) in {
        "image_token_id": (model.image_token_id, trained.image_token_id),
        "tokens_per_image": (model.tokens_per_image, trained.tokens_per_image),
        "image_shape": (model.image_shape, trained.image_shape),
    }.items():
        if theirs != ours:
            raise RunError(f"{parameter} of {name} is {theirs}, that of the model {ours}")


class TeacherModel(Guide):
    """A frozen model that predicts the targets of distillation."""

    model: nn.Module

    def __init__(self, model: nn.Module, weight: float, temperature: float):
        self.model = model
        self.weight = weight
        self.temperature = temperature

    @torch.no_grad()
    def inputs(self, batch: Batch, model: LanguageModel) -> dict[str, Any]:
        """Returns the teacher's logits for a batch, with weight and temperature."""
        inputs = {name: tensor for name, tensor in batch.inputs.items() if name != "targets"}
        return {"teacher": Teacher(self.model(**inputs), self.weight, self.temperature)}
