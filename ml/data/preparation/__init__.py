"""Preparation: converts sources of text to token files, in parallel and resumable."""

from ml.data.preparation.preparing import Settings, Summary, prepare
from ml.data.preparation.texts import texts_of
from ml.data.reading.options import COUNTS, Findings, Reading
from ml.data.reading.sources import Source, find_sources

__all__ = ["COUNTS", "Findings", "Reading", "Settings", "Source", "Summary", "find_sources", "prepare", "texts_of"]
