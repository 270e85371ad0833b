"""Entry point shared by all commands: flags, messages and exit codes. Imports no torch."""

import re
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags

from ml import launcher
from ml.errors import INTERRUPTED, ArgumentError, OtherProcessFailed, RunFailure, UserError
from ml.files import is_full

_SECONDS_FOR_ANOTHER = 10.0
_GIN_FLAG = re.compile(
    r"""--gin\.(?P<key>(?:'[^']*'|"[^"]*"|[^='"])+?)(?P<operator>\s*[+-]?=)(?P<value>.*)""", re.DOTALL
)


def gin_flags_as_bindings(arguments: list[str]) -> list[str]:
    """Returns the arguments with `--gin.Linear.bias=False` as `--gin_bindings=Linear.bias = False`, in order."""
    result = []
    for argument in arguments:
        match = _GIN_FLAG.fullmatch(argument)
        result.append(
            f"--gin_bindings={match['key']} {match['operator'].strip()} {match['value']}" if match else argument
        )
    return result


def run(main: Callable[[list[str]], int], arguments: list[str]) -> NoReturn:
    """Parses the flags, calls `main` with the remaining arguments, and exits with its code.

    An error that the user can fix ends with a message and exit code 2, a run that cannot continue with a message and 1.
    """
    try:
        app.run(main, argv=gin_flags_as_bindings(arguments), flags_parser=_parse)
    except ArgumentError as error:
        _leave(error.with_flags, 2)
    except (UserError, flags.Error) as error:
        _leave(str(error), 2)
    except RunFailure as error:
        _leave(str(error), 1)
    except OSError as error:
        if not is_full(error):
            raise
        _leave(f"cannot write {error.filename or 'the output'}: {error.strerror}", 1)
    except OtherProcessFailed as error:
        sys.exit(error.exit_code)  # it reports the reason
    except KeyboardInterrupt:
        _leave("interrupted", INTERRUPTED)


def _is_said_by_another() -> bool:
    """Returns whether another process on this machine finds the same error: before they have met, all read the same."""
    distributed = sys.modules.get("torch.distributed")
    have_met = distributed is not None and distributed.is_initialized()
    return launcher.is_launched() and launcher.local_rank() > 0 and not have_met


def _parse(arguments: list[str]) -> list[str]:
    try:
        left = flags.FLAGS(arguments)
    except ValueError as error:  # absl raises more than its own errors for a wrong flag
        raise UserError(str(error)) from error
    except SystemExit:  # --help and similar flags exit with an error code
        sys.exit(0)
    if len(left) > 1:
        hint = f"; did you mean --gin_file={left[1]}?" if left[1].endswith(".gin") else ""
        raise UserError(f"unexpected argument {left[1]!r}{hint}")
    return left


def _leave(message: str, code: int) -> NoReturn:
    if _is_said_by_another():
        time.sleep(_SECONDS_FOR_ANOTHER)  # the launcher ends this process when the other one has ended
    print(message, file=sys.stderr)
    sys.exit(code)
