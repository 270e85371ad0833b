"""The flags of verbs that read text, JSON lines and Parquet."""

import argparse

from ml.errors import UserError


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the sources and how they are read."""
    parser.add_argument(
        "sources",
        nargs="*",
        help="files and folders: .jsonl, .parquet, all others as text; .gz, .bz2, .xz are read too",
    )
    parser.add_argument("--pattern", default="*", help='which files of a folder are read, such as "*.jsonl"')
    parser.add_argument("--text_key", default="text", help="the key of JSON lines, or Parquet column (default text)")
    parser.add_argument("--on_error", choices=("stop", "skip"), default="stop", help="at a broken row (default stop)")
    parser.add_argument(
        "--invalid_utf8", choices=("replace", "error"), default="replace", help="what is no UTF-8 (default replace)"
    )


def reading_of(arguments: argparse.Namespace, validation_fraction: float = 0.0):
    """How the sources are read.

    Raises:
        UserError: There are none, or a number is out of range.
    """
    from ml.data.preparation import Reading

    if not arguments.sources:
        raise UserError("name the files or folders to read")
    if not 0.0 <= validation_fraction < 1.0:
        raise UserError(f"--validation_fraction must be in [0, 1), not {validation_fraction}")
    return Reading(arguments.text_key, arguments.on_error, arguments.invalid_utf8, validation_fraction)
