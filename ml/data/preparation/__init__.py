"""Preparation: converts sources of text to token files, in parallel and resumable."""

from ml.data.preparation.pieces import COUNTS, Findings, Reading
from ml.data.preparation.preparing import Settings, Summary, prepare
from ml.data.preparation.sources import Source, find_sources
from ml.data.preparation.texts import texts_of

__all__ = ["COUNTS", "Findings", "Reading", "Settings", "Source", "Summary", "find_sources", "prepare", "texts_of"]
