"""Errors of a run that the user can fix."""

from ml.errors import RunFailure, UserError

__all__ = ["RunError", "RunFailure"]


class RunError(UserError):
    """The run cannot start: its folder, its data or its checkpoints do not fit."""
