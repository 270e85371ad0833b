"""Pins what a configuration leaves open, before the run is written: the checkpoints that it uses, by step and hash."""

from __future__ import annotations

import ast
import contextlib
import functools
from typing import TYPE_CHECKING, Any

from ml.building import build_trainer
from ml.config import Config
from ml.config.comparison import statements
from ml.distributed import ALONE, World

if TYPE_CHECKING:
    from ml.training import DirectPreferenceOptimization, Distillation, InitialWeights, RunFolder, Trainer

_LOCATION = "found when the run started"
_PLACES = ("initial_weights", "distillation", "preference")


def pinned(
    config: Config,
    folder: RunFolder,
    world: World = ALONE,
    trainer: Trainer | None = None,
    epoch_sequences: int | None = None,
) -> Config:
    """Returns the configuration with the step and the hash of each checkpoint of another run that it uses.

    A run that is resumed keeps what it recorded, even if the other run has trained on since, and the defaults of the
    release that began it. With `Trainer.num_epochs`, the number of sequences in an epoch is part of the result, unless
    nothing tells it yet.

    Args:
        config: The configuration.
        folder: The folder of the run; what a dry run left there does not count.
        world: The processes of the run, which take what the first one finds.
        trainer: The trainer that the configuration builds; None builds it.
        epoch_sequences: Number of sequences in an epoch of the open data; None takes what the folder recorded.

    Raises:
        RunError: There is no such checkpoint.
    """
    saved = world.first(lambda: folder.operative_config() if folder.is_begun else None)
    begun_with = config if saved is None else config.with_defaults_of(saved)
    if trainer is None or begun_with is not config:
        config, trainer = begun_with, build_trainer(begun_with)
    for place in _PLACES:
        part = getattr(trainer, place)
        if part is not None:
            pins = world.first(functools.partial(_pins, part, saved))
            config = config.rebound((place,), pins, _LOCATION) if pins else config
    length = trainer.length
    if length.num_epochs is not None:
        found = epoch_sequences or recorded_values(saved or "", "Trainer").get("epoch_sequences")
        if found is not None and found != length.epoch_sequences:
            config = config.rebound((), {"epoch_sequences": found}, _LOCATION)
    return config


def adopt_found(trainer: Trainer, earlier: Trainer) -> None:
    """Takes over the checkpoints that `pinned` has found, so that they are verified once.

    Args:
        trainer: The trainer of the pinned configuration.
        earlier: The trainer of the configuration before.
    """
    for place in _PLACES:
        part = getattr(trainer, place)
        if part is not None:
            part.adopt(getattr(earlier, place))


def _pins(part: InitialWeights | Distillation | DirectPreferenceOptimization, saved: str | None) -> dict[str, Any]:
    return part.pins(recorded_values(saved or "", type(part).__name__))


def recorded_values(operative: str, name: str) -> dict[str, Any]:
    """Returns the values of a configurable that an operative config has once, by parameter."""
    found: dict[str, Any] = {}
    for one in statements(operative):
        configurable, _, parameter = one.name.rpartition(".")
        if configurable == name:
            with contextlib.suppress(ValueError, SyntaxError):
                found[parameter] = ast.literal_eval(one.text.partition(" = ")[2])
    return found
