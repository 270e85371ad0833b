"""Errors of folders in the format of Hugging Face."""

from ml.training.errors import RunError


class InteropError(RunError):
    """A folder cannot be imported, or a model cannot be exported."""
