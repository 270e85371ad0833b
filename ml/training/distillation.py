"""Learning from a second model."""

import torch
from torch import nn

from ml.config import configurable, require
from ml.data import Batch
from ml.layers.loss import Teacher
from ml.training.errors import RunError


@configurable
class Distillation:
    """Lets a trained model say what it expects of each token, which becomes part of the loss (Hinton et al. 2015).

    Args:
        teacher: The folder of a run over the same tokens, whose newest checkpoint teaches.
        weight: The part of the loss that follows the teacher; the rest follows the text.
        temperature: Both distributions are flattened by it.
    """

    def __init__(self, *, teacher: str, weight: float = 0.5, temperature: float = 1.0):
        require(0.0 < weight <= 1.0, "weight", f"must be above 0 and at most 1, not {weight}")
        require(temperature > 0.0, "temperature", f"must be positive, not {temperature}")
        self.teacher = teacher
        self.weight = weight
        self.temperature = temperature

    def open(self, vocab_size: int, device: torch.device) -> "TeacherModel":
        """Loads the teacher.

        Raises:
            UserError: There is no such run, or its vocabulary is another one.
        """
        from ml.runs import Run

        model = Run(self.teacher).build(device=device)
        if model.vocab_size != vocab_size:
            sizes = f"{model.vocab_size} tokens, that of the model {vocab_size}"
            raise RunError(f"the vocabulary of the teacher {self.teacher} has {sizes}")
        return TeacherModel(model.requires_grad_(False), self.weight, self.temperature)


class TeacherModel:
    """A model that teaches, ready to be asked."""

    def __init__(self, model: nn.Module, weight: float, temperature: float):
        self.model = model
        self.weight = weight
        self.temperature = temperature

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Teacher:
        """What it says of a batch."""
        inputs = {name: tensor for name, tensor in batch.inputs.items() if name != "targets"}
        return Teacher(self.model(**inputs), self.weight, self.temperature)
