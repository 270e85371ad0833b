"""Errors of the data pipeline."""

from ml.errors import UserError


class DataError(UserError):
    """Data that cannot be used. The message is one line: the fault, its file or dataset, and the fix."""


class MissingData(DataError):
    """Data that is not on this machine."""
