"""The frozen model that a run learns from: a teacher, or the reference of preferences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ml.models import LanguageModel
    from ml.training import Trainer
    from ml.training.checkpoints.reference import CheckpointSource
    from ml.training.guide import Guide

LoadModel = Callable[[str, Path, bool], "LanguageModel"]
"""Loads the model of a run: (its folder, the checkpoint, True for the average of the weights)."""


def open_guide(trainer: Trainer, load: LoadModel) -> Guide | None:
    """Loads the teacher of `trainer.distillation`, or the reference of `trainer.preference`.

    Args:
        trainer: The settings of the run that is trained.
        load: Loads a model; without weights on the meta device, where it is only checked.

    Returns:
        The model; None without distillation and preference.

    Raises:
        UserError: There is no such run or checkpoint, or it does not fit the run.
    """
    distillation, preference = trainer.distillation, trainer.preference
    if preference is not None:
        return preference.compare(trainer.model, trainer.sequence_length, _reference(trainer, load))
    if distillation is None:
        return None
    model = _loaded(distillation.teacher, distillation.source, load)
    return distillation.teach(trainer.model, trainer.sequence_length, model)


def _reference(trainer: Trainer, load: LoadModel) -> LanguageModel | None:
    """Loads the reference of preferences; None for the trained model without its adapters."""
    from ml.training import FromRun
    from ml.training.checkpoints.reference import CheckpointSource
    from ml.training.errors import RunError
    from ml.training.preference import trains_adapters_alone

    preference, initial = trainer.preference, trainer.initial_weights
    assert preference is not None  # the caller has it
    if preference.reference is not None:
        return _loaded(preference.reference, preference.source, load)
    if trains_adapters_alone(trainer.model):
        return None
    if isinstance(initial, FromRun) and initial.state != "all":
        own = CheckpointSource(initial.source.reference)  # the start of the run releases the other
        return _loaded(initial.path, own, load, average=initial.state == "average")
    raise RunError(
        "Trainer.preference has no reference: start from a run with --init_from, or name one by "
        "DirectPreferenceOptimization.reference"
    )


def _loaded(path: str, source: CheckpointSource, load: LoadModel, average: bool = False) -> LanguageModel:
    model = load(path, source.find().path, average)
    source.release()
    return model
