"""Shared fixtures of the configuration tests: a small model, and the problems of invalid bindings."""

import pytest
from small_model import SMALL, build_on_meta

from ml.config import Config, ConfigError, load


@pytest.fixture
def load_model():
    """Loads the small model with more bindings: `load_model("Linear.bias = False", ...)`."""

    def load_small(*bindings: str, files=(), **options) -> Config:
        return load(files, [SMALL, *bindings], root=build_on_meta, **options)

    return load_small


@pytest.fixture
def problems(load_model):
    """Returns the problems of bindings as a list of texts."""

    def problems_of(*bindings: str, **options) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load_model(*bindings, **options)
        return [str(problem) for problem in caught.value.problems]

    return problems_of
