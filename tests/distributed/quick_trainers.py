"""Trainers of tests, built once, without the dry run and the operative config of `ml.load`: these take most of the
time of a tiny model.
"""

import ml.training.rehearsal  # noqa: F401  (imports everything that a file can name)
from ml import config as configuration
from ml.api import build_trainer
from ml.building import SHIPPED_CONFIGS, _trainer_on_meta
from ml.config.analysis import Analyzer
from ml.config.construction import Build
from ml.config.effects import effective_bindings
from ml.config.names import Names
from ml.config.parsing import Reader, SearchPath
from ml.config.statements import Layer

ADAMW = "Trainer.optimizer = @AdamW"  # instead of Muon, which magnifies rounding


def quick_config(bindings):
    """The configuration of base.gin with bindings and AdamW."""
    return configuration.load(["base.gin"], [ADAMW, *bindings], root=_trainer_on_meta, shipped=SHIPPED_CONFIGS)


def quick_trainer(bindings):
    """The trainer of base.gin with bindings and AdamW; its model is on the meta device."""
    trainer, unused = trainer_and_unused("base.gin", [ADAMW, *bindings])
    return build_trainer(quick_config(bindings)) if unused else trainer  # which reports what is wrong


def trainer_and_unused(file, bindings):
    """Returns the trainer of a file with bindings, and the bindings that set nothing.

    Raises:
        ConfigError: A value is wrong.
    """
    reader = Reader(SearchPath([], SHIPPED_CONFIGS), False)
    reader.read_file(file)
    for binding in bindings:
        reader.read_text(binding, "bindings", Layer.FLAG)
    analysis = Analyzer(reader.statements, reader.lost, Names(reader.importer.registered()), reader.shipped).run()
    if problems := reader.problems + analysis.problems:
        raise configuration.ConfigError(problems)
    build = Build(analysis.bindings, keep_calls=True)
    with build:
        trainer = _trainer_on_meta()
    last = {binding.identity: binding for binding in analysis.bindings if binding.layer is Layer.FLAG}
    return trainer, set(last.values()) - effective_bindings(build)
