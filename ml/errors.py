"""The two ways in which a command ends badly without being at fault."""

INTERRUPTED = 130  # the exit code that a shell reports for a process that SIGINT ended


class UserError(ValueError):
    """The configuration or the input is wrong and the user can mend it: the message is printed, the exit code is 2."""


class RunFailure(RuntimeError):
    """A run started well and cannot go on: the message is printed, the exit code is 1."""
