"""Trainers of tests, built once, without the dry run and the operative config of `ml.load`.

These take most of the time of a tiny model.
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


def quick_trainer(bindings, common=()):
    """The trainer of base.gin with bindings and AdamW; its model is on the meta device.

    Args:
        bindings: Bindings, which must have an effect.
        common: Bindings of all cases of a test, before the others, which in some case may set nothing.
    """
    trainer, unused = trainer_and_unused("base.gin", bindings, [ADAMW, *common])
    return build_trainer(quick_config([*common, *bindings])) if unused else trainer  # which reports what is wrong


def trainer_and_unused(file, bindings, common=()):
    """Returns the trainer of a file or of bindings alone, and the bindings that set nothing, apart from common ones.

    Args:
        file: A gin file; None for none.
        bindings: Bindings whose effect matters.
        common: Bindings before them.

    Raises:
        ConfigError: A value is wrong.
    """
    reader = Reader(SearchPath([], SHIPPED_CONFIGS), False)
    if file is not None:
        reader.read_file(file)
    for layer, texts in ((Layer.FILE, common), (Layer.FLAG, bindings)):
        for text in texts:
            reader.read_text(text, "bindings", layer)
    analysis = Analyzer(reader.statements, reader.lost, Names(reader.importer.registered()), reader.shipped).run()
    if problems := reader.problems + analysis.problems:
        raise configuration.ConfigError(problems)
    build, failure = Build(analysis.bindings, keep_calls=True, collect=True), None
    try:
        with build:
            trainer = _trainer_on_meta()
    except Exception as error:  # any error can follow from a problem
        failure = error
    if problems := failure.problems if isinstance(failure, configuration.ConfigError) else build.problems:
        raise configuration.ConfigError(problems)
    if failure is not None:
        raise failure
    last = {binding.identity: binding for binding in analysis.bindings if binding.layer is Layer.FLAG}
    return trainer, set(last.values()) - effective_bindings(build)
