"""A run that left its folder: its configuration, its weights, its metrics."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml.building import build, load
from ml.config import Config, ImportedValue
from ml.config.configurable import Configurable
from ml.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ml.training import Trainer
    from ml.training.distillation import TeacherModel

_MODEL_PACKAGES = ("ml.layers.", "ml.blocks.", "ml.models.")


class Run:
    """The folder of a run, opened to look inside and to go on.

    Args:
        path: of the folder.
        trust_code: whether the copy of its own code that it keeps is executed.

    Raises:
        UserError: where there is no run.
    """

    def __init__(self, path: str | Path, *, trust_code: bool = False):
        self._trust_code = trust_code
        self.path = Path(path)
        self._operative = self.path / "operative_config.gin"
        if not self._operative.is_file():
            raise UserError(f"there is no run in {self.path}: it has no operative_config.gin")

    @functools.cached_property
    def config(self) -> Config:
        """The configuration of the run, from its operative config."""
        return load(self._operative, trust_code=self._trust_code)

    def build(self, step: int | None = None, device: str | torch.device = "cpu", *, average: bool = False) -> nn.Module:
        """Builds the model with the weights of a checkpoint.

        Args:
            step: of the checkpoint; None is the newest whole one.
            device: where the model is put.
            average: takes the running average of the weights instead of the last ones.

        Raises:
            RunError: where there is no such checkpoint, or it is damaged, or has no average.
        """
        from ml.training.checkpoints.weight_files import read_weights

        checkpoint = self.checkpoint(step)
        model = build(self.config, device)
        read_weights(checkpoint, model, average=average)
        return model.eval()

    def checkpoint(self, step: int | None = None) -> Path:
        """The folder of a checkpoint; None is the newest whole one.

        Raises:
            RunError: where there is no such checkpoint, or it is damaged.
        """
        from ml.training.checkpoints.policy import open_checkpoint

        return open_checkpoint(self.path / "checkpoints", step)

    def export(self, file: str | Path, step: int | None = None, *, average: bool = False) -> int:
        """Writes the weights of a checkpoint alone to a safetensors file; returns how many tensors.

        Raises:
            RunError: where there is no such checkpoint, or the file cannot be written.
        """
        from ml.training.checkpoints.weight_files import export_weights

        return export_weights(self.checkpoint(step), Path(file), average=average)

    def imported_values(self) -> list[ImportedValue]:
        """The configuration of the model, as the imported layer of a run that starts from this one."""
        return self.config.as_imported(_is_part_of_a_model, str(self._operative))

    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, oldest first."""
        from ml.training.run_folder import RunFolder

        return RunFolder(self.path).metrics()


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
    model = Run(distillation.teacher).build(distillation.step, device)
    return distillation.teach(trainer.model, trainer.sequence_length, model)


def _is_part_of_a_model(info: Configurable) -> bool:
    from torch import nn

    is_module = isinstance(info.target, type) and issubclass(info.target, nn.Module)
    return is_module or info.selector.startswith(_MODEL_PACKAGES)
