"""Fixtures of the model tests, which use the cases of the layer tests."""

import sys
from pathlib import Path

import pytest

from ml.models import materialize

sys.path.append(str(Path(__file__).parent.parent / "layers"))


@pytest.fixture
def materialized():
    """Initializes a model with seed 0."""
    return lambda model: materialize(model, "cpu", 0)
