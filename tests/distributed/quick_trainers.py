"""Trainers of tests, built without the dry run that `ml.load` makes: it takes most of the time of a tiny model."""

import ml.training.rehearsal  # noqa: F401  (imports everything that a file can name)
from ml import config as configuration
from ml.api import build_trainer
from ml.building import SHIPPED_CONFIGS, _trainer_on_meta


def quick_config(bindings):
    """The configuration of base.gin with bindings, and AdamW instead of Muon, which magnifies rounding."""
    bindings = ["Trainer.optimizer = @AdamW", *bindings]
    return configuration.load(["base.gin"], bindings, root=_trainer_on_meta, shipped=SHIPPED_CONFIGS)


def quick_trainer(bindings):
    """The trainer of base.gin with bindings; its model is on the meta device."""
    return build_trainer(quick_config(bindings))
