"""What can be wrong with the data that a user names."""

from ml.errors import UserError


class DataError(UserError):
    """The data cannot be used as asked: one line that says which, where, and what to change."""
