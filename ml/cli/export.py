"""Write the weights of a run alone, as safetensors."""

import argparse

from ml.cli.path_argument import to_path
from ml.cli.run_arguments import add_run_argument, add_step_argument
from ml.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_argument(parser)
    parser.add_argument(
        "file", type=to_path, help="what to write, such as weights.safetensors; one that is there is replaced"
    )
    add_step_argument(parser)
    parser.add_argument("--average", action="store_true", help="the running average of the weights, not the last ones")


def run(arguments: argparse.Namespace) -> None:
    """Writes the file and reports its content."""
    from ml.api import open_run

    if not arguments.file.parent.is_dir():
        raise UserError(f"there is no folder {arguments.file.parent}")
    opened = open_run(arguments.run, trust_code=arguments.trust_run_code)
    count = opened.export(arguments.file, arguments.step, average=arguments.average)
    print(f"{count} tensors, {arguments.file.stat().st_size:,} bytes: {arguments.file}")
