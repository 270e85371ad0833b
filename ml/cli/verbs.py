"""The verbs of `python -m ml`: each is a module with `add_arguments(parser)` and `run(arguments)`."""

import argparse
import os
import sys

from ml.cli import (
    configs,
    diff,
    evaluate,
    explain,
    export,
    generate,
    plot,
    prepare,
    show,
    sweep,
    train_tokenizer,
)
from ml.cli.entry import gin_flags_as_bindings
from ml.errors import INTERRUPTED, RunFailure, UserError

VERBS = {
    "configs": configs,
    "show": show,
    "explain": explain,
    "diff": diff,
    "generate": generate,
    "prepare": prepare,
    "train_tokenizer": train_tokenizer,
    "evaluate": evaluate,
    "export": export,
    "plot": plot,
    "sweep": sweep,
}


def main(arguments: list[str]) -> int:
    """Runs a verb; returns the exit code: 0, or 2 with a message where the user can mend what is wrong, else 1."""
    parser = argparse.ArgumentParser(prog="python -m ml", description="Everything that is not training.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, module in VERBS.items():
        summary = module.__doc__.splitlines()[0]
        module.add_arguments(verbs.add_parser(name, help=summary, description=summary))
    parsed = parser.parse_args(gin_flags_as_bindings(arguments))
    try:
        VERBS[parsed.verb].run(parsed)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has seen enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except RunFailure as error:
        print(error, file=sys.stderr)
        return 1
    return 0
