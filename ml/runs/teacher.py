"""The teacher of a run that distills from another run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ml.runs.run import Run

if TYPE_CHECKING:
    import torch

    from ml.training import Trainer
    from ml.training.distillation import TeacherModel


def open_teacher(trainer: Trainer, device: torch.device) -> TeacherModel | None:
    """Loads the teacher of `trainer.distillation`.

    Args:
        trainer: The settings of the student's run.
        device: Where the teacher is put; on the meta device it is checked and has no weights.

    Returns:
        The teacher; None without distillation.

    Raises:
        UserError: There is no such run or checkpoint, or it does not fit the student.
    """
    distillation = trainer.distillation
    if distillation is None:
        return None
    run = Run(distillation.teacher)
    model = run.build_checkpoint(distillation.source.find().path, device)
    distillation.source.release()
    return distillation.teach(trainer.model, trainer.sequence_length, model)
