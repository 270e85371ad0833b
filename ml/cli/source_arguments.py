"""Command line flags of sources: text, JSON, tables, Parquet and Arrow."""

import argparse
from typing import Literal

from ml.cli.path_argument import path_text
from ml.errors import UserError


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds flags for the sources and the options of reading."""
    parser.add_argument(
        "sources",
        type=path_text,
        nargs="*",
        help="files and folders: text, JSON lines, JSON arrays, CSV, TSV, Parquet, Arrow; also compressed",
    )
    parser.add_argument("--pattern", default="*", help='glob for files in folders, such as "*.jsonl"')
    parser.add_argument(
        "--format",
        choices=("auto", "text"),
        default="auto",
        help="auto: by the content of each file; text: each file is one document (default auto)",
    )
    parser.add_argument("--text_key", default="text", help="key in JSON, or column in tables (default text)")
    parser.add_argument(
        "--on_error", choices=("stop", "skip"), default="stop", help="for an invalid row (default stop)"
    )
    parser.add_argument(
        "--invalid_utf8",
        choices=("replace", "error"),
        default="replace",
        help="for invalid UTF-8 (default replace)",
    )


def sources_of(arguments: argparse.Namespace, reading):
    """Returns the source files, without those of --output, which may be in the folder of the sources.

    Raises:
        UserError: A path does not exist, or a file is not of a known format.
    """
    from ml.data.preparation import find_sources

    return find_sources(
        arguments.sources, arguments.pattern, reading, as_format=arguments.format, excluded=arguments.output
    )


def reading_of(
    arguments: argparse.Namespace, validation_fraction: float = 0.0, hold_out_by: Literal["name", "content"] = "name"
):
    """Returns the options of reading.

    Raises:
        UserError: There are no sources, or a number is out of range.
    """
    from ml.data.preparation import Reading

    if not arguments.sources:
        raise UserError("name the files or folders to read")
    if not 0.0 <= validation_fraction < 1.0:
        raise UserError(f"--validation_fraction must be in [0, 1), not {validation_fraction}")
    return Reading(arguments.text_key, arguments.on_error, arguments.invalid_utf8, validation_fraction, hold_out_by)
