"""Fixtures for the tests of models, which use the cases of the tests of layers."""

import sys
from pathlib import Path

import pytest

from ml.models import materialize

sys.path.append(str(Path(__file__).parent.parent / "layers"))


@pytest.fixture
def materialized():
    """Fills a model with the values of seed 0."""
    return lambda model: materialize(model, "cpu", 0)
