"""What the tests of the configuration share: loading a model on the meta device, and looking up who set what."""

import pytest
import torch

from ml.config import Config, ConfigError, load
from ml.models import LanguageModel

SMALL = """
LanguageModel.vocab_size = 64
LanguageModel.hidden_size = 32
decoder/Repeat.num_blocks = 5
Attention.num_heads = 4
"""


def build_on_meta() -> LanguageModel:
    with torch.device("meta"):
        return LanguageModel()


@pytest.fixture
def load_model():
    """Loads the small model with more bindings: `load_model("Linear.bias = False", ...)`."""

    def load_small(*bindings: str, files=(), **options) -> Config:
        return load(files, [SMALL, *bindings], root=build_on_meta, **options)

    return load_small


@pytest.fixture
def problems(load_model):
    """The problems that bindings have, as text, one each."""

    def problems_of(*bindings: str, **options) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load_model(*bindings, **options)
        return [str(problem) for problem in caught.value.problems]

    return problems_of


def values(config: Config, configurable: str, parameter: str) -> dict[str, str]:
    """path -> value, for one parameter of every module that has it."""
    return {
        record.path: record.value
        for record in config.records()
        if (record.configurable, record.parameter) == (configurable, parameter)
    }


def record_of(config: Config, path: str, parameter: str):
    """The record of one parameter at one path (where one thing is built there that has it)."""
    (found,) = [r for r in config.records() if (r.path, r.parameter) == (path, parameter)]
    return found
