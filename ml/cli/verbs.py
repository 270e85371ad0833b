"""The command `juniper`, which is `python -m ml`: a verb is a module with `add_arguments(parser)` and `run(arguments)`.

`train` is another one, because its flags are absl's.
"""

import argparse
import os
import sys

from ml.cli import (
    configs,
    data,
    diff,
    evaluate,
    explain,
    export,
    generate,
    import_folder,
    plot,
    prepare,
    prepare_chat,
    show,
    sweep,
    train,
    train_tokenizer,
)
from ml.cli.entry import gin_flags_as_bindings
from ml.errors import INTERRUPTED, ArgumentError, RunFailure, UserError
from ml.files import is_full
from ml.version import __version__

VERBS = {
    "configs": configs,
    "show": show,
    "explain": explain,
    "diff": diff,
    "data": data,
    "generate": generate,
    "prepare": prepare,
    "prepare_chat": prepare_chat,
    "train_tokenizer": train_tokenizer,
    "evaluate": evaluate,
    "export": export,
    "import": import_folder,
    "plot": plot,
    "sweep": sweep,
}


def main(arguments: list[str] | None = None, command: str = "juniper") -> int:
    """Runs a verb.

    Args:
        arguments: The verb and its arguments; None for those of the process.
        command: What the help calls the command.

    Returns:
        The exit code: 0, or 2 with a message where the user can mend what is wrong, else 1.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["train"]:
        train.main(arguments[1:], f"{command} train")
    parsed = _parser(command).parse_args(gin_flags_as_bindings(arguments))
    try:
        VERBS[parsed.verb].run(parsed)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader closed the pipe, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if not is_full(error):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it at the end
        print(f"cannot write {error.filename or 'the output'}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except ArgumentError as error:
        print(error.with_flags, file=sys.stderr)
        return 2
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except RunFailure as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=command, description="Trains language models and works with their runs.")
    parser.add_argument("--version", action="version", version=f"juniper {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("train", help=train.__doc__)
    for name, module in VERBS.items():
        summary = (module.__doc__ or "").partition("\n")[0]
        module.add_arguments(verbs.add_parser(name, help=summary, description=summary))
    return parser
