"""What can go wrong in a run that is no fault of the program."""

from ml.errors import RunFailure, UserError

__all__ = ["RunError", "RunFailure"]


class RunError(UserError):
    """The run cannot start as asked: its folder, its data or its checkpoints do not fit."""
