"""The frozen model that a run learns from, loaded from the folder of its run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ml.runs.guides import open_guide
from ml.runs.run import Run

if TYPE_CHECKING:
    import torch

    from ml.training import Trainer
    from ml.training.guide import Guide


def open_teacher(trainer: Trainer, device: torch.device) -> Guide | None:
    """Loads the teacher of `trainer.distillation`, or the reference of `trainer.preference`.

    Args:
        trainer: The settings of the run that is trained.
        device: Where the model is put; on the meta device it is checked and has no weights.

    Returns:
        The model; None without distillation and preference.

    Raises:
        UserError: There is no such run or checkpoint, or it does not fit the run.
    """
    return open_guide(trainer, lambda path, found, average: Run(path).build_checkpoint(found, device, average=average))
