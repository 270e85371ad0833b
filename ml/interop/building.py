"""Models built from imported values alone."""

from collections.abc import Sequence

import torch

from ml import config as configuration
from ml.config import ImportedValue
from ml.interop.fields import key_of
from ml.models import LanguageModel
from ml.training import Trainer


def model_of(values: Sequence[ImportedValue]) -> LanguageModel:
    """Builds a model of imported values on the meta device.

    Raises:
        ConfigError: The values do not fit.
    """
    chosen = key_of(Trainer, "model")
    constructor = next((value.value for value in values if value.key == chosen), LanguageModel)

    def model_on_meta() -> LanguageModel:
        with torch.device("meta"):
            return constructor()

    return configuration.load((), root=model_on_meta, imported=values).build(model_on_meta)
