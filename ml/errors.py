"""Errors that a user can cause: a command ends with their message and no traceback."""

import re

INTERRUPTED = 130  # the exit code that a shell reports for a process that SIGINT ended

_NAME = re.compile(r"\{(\w+)\}")


class UserError(ValueError):
    """An error in the configuration or input that the user can fix: the message is printed, the exit code is 2."""


class ArgumentError(UserError):
    """The arguments of a call are wrong. The command line spells their names as flags.

    Args:
        template: The message, with the names of parameters in braces: "{stride} must be positive, not %s".
        values: Replace each `%s`.
    """

    def __init__(self, template: str, *values: object):
        super().__init__(_NAME.sub(r"\1", template) % values)
        self.with_flags = _NAME.sub(r"--\1", template) % values


class RunFailure(RuntimeError):
    """A run started and cannot continue: the message is printed, the exit code is 1."""


class OtherProcessFailed(Exception):
    """Another process of the run failed and reports the reason.

    Args:
        rank: The rank of that process.
        message: Its message.
        exit_code: The exit code of this process.
    """

    def __init__(self, rank: int, message: str, exit_code: int):
        super().__init__(f"rank {rank}: {message}")
        self.rank = rank
        self.exit_code = exit_code
