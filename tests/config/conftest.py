"""What the tests of the configuration share: loading a small model, and the problems of what is wrong."""

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
    """The problems that bindings have, as text, one each."""

    def problems_of(*bindings: str, **options) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load_model(*bindings, **options)
        return [str(problem) for problem in caught.value.problems]

    return problems_of
