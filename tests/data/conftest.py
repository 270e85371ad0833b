"""Shared fixtures of the tests of preparation."""

import pytest
from sources import Silent

from ml.data import ByteTokenizer
from ml.data.preparation import Reading, Settings, cutting, find_sources, preparing
from ml.data.reading import records


@pytest.fixture
def prepared(tmp_path):
    """Prepares sources, by default the folder `in`; returns the output and the folders."""

    def prepare(output="out", *, tokenizer=None, num_workers=1, shard_tokens=2**30, pattern="*", paths=None, **reading):
        options = Reading(**reading)
        sources = find_sources(paths or [tmp_path / "in"], pattern, options)
        display = Silent()
        settings = Settings(tmp_path / output, options, shard_tokens, num_workers)
        summary = preparing.prepare(sources, tokenizer or ByteTokenizer(), settings, display)
        return summary, display

    (tmp_path / "in").mkdir()
    return prepare


@pytest.fixture
def small_tasks(monkeypatch):
    """Uses tasks of some hundred bytes, so that small files have many, with a commit after each."""
    monkeypatch.setattr(cutting, "_BYTES_AT_ONCE", 700)
    monkeypatch.setattr(records, "BLOCK_BYTES", 700)
    monkeypatch.setattr(cutting, "_FIRST_SEARCHED", 16)
    monkeypatch.setattr(preparing, "_SECONDS_BETWEEN_COMMITS", 0.0)
