"""Fixtures for the tests of models."""

import pytest

from ml.models import materialize


@pytest.fixture
def materialized():
    """Fills a model with the values of seed 0."""
    return lambda model: materialize(model, "cpu", 0)
