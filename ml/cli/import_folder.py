"""Show the model of a Hugging Face folder, and write it as a gin file."""

import argparse
from pathlib import Path

from ml.cli.path_argument import to_path
from ml.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=to_path, help="the Hugging Face folder")
    parser.add_argument("file", type=to_path, nargs="?", help="the gin file to write; without it, it is printed")


def run(arguments: argparse.Namespace) -> None:
    """Checks the folder, and writes the model part of a configuration."""
    from ml.interop.describing import describe_folder, gin_text

    text = gin_text(arguments.folder)
    lines = describe_folder(arguments.folder)
    if arguments.file is None:
        print(text)
    else:
        file = Path(arguments.file)
        if file.exists():
            raise UserError(f"{file} exists already")
        if not file.parent.is_dir():
            raise UserError(f"there is no folder {file.parent}")
        file.write_text(text, encoding="utf-8")
        lines.append(f"the model is written to {file}")
    for line in lines:
        print(line if arguments.file else f"# {line}")
