"""From text to token files: sources, the pieces they are cut in, the processes that encode them, and going on."""

from ml.data.preparation.pieces import Reading
from ml.data.preparation.preparing import Settings, Summary, prepare
from ml.data.preparation.sources import Source, find_sources

__all__ = ["Reading", "Settings", "Source", "Summary", "find_sources", "prepare"]
