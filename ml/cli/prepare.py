"""Turn text, JSON lines or Parquet into token files."""

import argparse
import os
import sys
from pathlib import Path

from ml.cli.preparation_display import display_on
from ml.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources",
        nargs="*",
        help="files and folders: .jsonl, .parquet, all others as text; .gz, .bz2, .xz are read too",
    )
    parser.add_argument("--output", type=Path, required=True, help="the folder that is written")
    parser.add_argument("--pattern", default="*", help='which files of a folder are read, such as "*.jsonl"')
    add_tokenizer_arguments(parser)
    parser.add_argument("--text_key", default="text", help="the key of JSON lines, or Parquet column (default text)")
    parser.add_argument("--validation_fraction", type=float, default=0.0, help="of the documents held out (default 0)")
    parser.add_argument("--on_error", choices=("stop", "skip"), default="stop", help="at a broken row (default stop)")
    parser.add_argument(
        "--invalid_utf8", choices=("replace", "error"), default="replace", help="what is no UTF-8 (default replace)"
    )
    parser.add_argument("--num_workers", type=int, help="processes that encode (default: one for each core)")
    parser.add_argument("--shard_tokens", type=int, default=2**30, help="in each file of tokens (default 2^30)")
    parser.add_argument("--verify", action="store_true", help="only read --output again and compare it with its hashes")


def add_tokenizer_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tokenizer",
        default="ByteTokenizer",
        help="ByteTokenizer (default), TiktokenTokenizer, HuggingFaceTokenizer, "
        "SentencePieceTokenizer, or one of yours",
    )
    parser.add_argument("--gin_file", action="append", default=[], help="with bindings for the tokenizer; repeatable")
    parser.add_argument(
        "--gin_bindings",
        action="append",
        default=[],
        help="""such as "HuggingFaceTokenizer.path = 'tokenizer.json'", or --gin.HuggingFaceTokenizer.path="'...'"; """
        "repeatable",
    )


def run(arguments: argparse.Namespace) -> None:
    """Prepares, or goes on where it was stopped; ends with what there is now."""
    from ml.data.preparation import Reading, Settings, find_sources, prepare

    if arguments.verify:
        return _verify(arguments)
    if not arguments.sources:
        raise UserError("name the files or folders to prepare")
    reading = Reading(
        arguments.text_key, arguments.on_error, arguments.invalid_utf8, _checked_fraction(arguments.validation_fraction)
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    settings = Settings(
        arguments.output,
        reading,
        _positive("shard_tokens", arguments.shard_tokens),
        cores if arguments.num_workers is None else _positive("num_workers", arguments.num_workers),
    )
    tokenizer = chosen_tokenizer(arguments)
    sources = find_sources(arguments.sources, arguments.pattern)
    display = display_on(sys.stdout)
    try:
        summary = prepare(sources, tokenizer, settings, display)
    finally:
        display.close()
    print(_told(summary))
    return None


def chosen_tokenizer(arguments: argparse.Namespace):
    """The tokenizer that the flags name, configured and checked as everything is.

    Raises:
        UserError: There is none of that name, or its configuration is wrong.
    """
    import ml
    from ml.config import ConfigError, load
    from ml.config.configurable import candidates, known_names
    from ml.config.errors import did_you_mean
    from ml.data.tokenizers.saved import is_tokenizer

    def root():
        found = [info for info in candidates(arguments.tokenizer) if is_tokenizer(info.target)]
        if len(found) != 1:
            known = [n for n in known_names() if any(is_tokenizer(info.target) for info in candidates(n))]
            raise UserError(
                f"--tokenizer: no tokenizer {arguments.tokenizer!r}{did_you_mean(arguments.tokenizer, known)}"
            )
        return found[0].target()

    try:
        config = load(arguments.gin_file, arguments.gin_bindings, root=root, shipped=ml.SHIPPED_CONFIGS)
    except ConfigError as error:
        raise UserError(str(error)) from error
    return config.build(root)


def _verify(arguments: argparse.Namespace) -> None:
    from ml.data.token_files import TokenFolder, find_token_folders

    if arguments.sources:
        raise UserError("--verify reads --output alone: leave the sources out")
    for path in find_token_folders(arguments.output):
        if path is not None:
            TokenFolder(path).verify()
            print(f"{path} is as it was written")


def _checked_fraction(fraction: float) -> float:
    if not 0.0 <= fraction < 1.0:
        raise UserError(f"--validation_fraction must be in [0, 1), not {fraction}")
    return fraction


def _positive(name: str, number: int) -> int:
    if number < 1:
        raise UserError(f"--{name} must be positive, not {number}")
    return number


def _told(summary) -> str:
    from ml.data.preparation.preparing import COUNTS

    lines = [f"{count:,} {COUNTS[kind]}" for kind, count in summary.counts.items()]
    for folder in summary.folders:
        rate = f" ({folder.num_bytes / folder.num_tokens:.2f} a token)" if folder.num_tokens else ""
        lines.append(
            f"{folder.path}: {folder.num_documents:,} documents, {folder.num_tokens:,} tokens, "
            f"{folder.num_bytes:,} bytes{rate}"
        )
        if not folder.num_documents:
            lines.append(f"{folder.path} is empty: the documents are too few for this --validation_fraction")
    seconds = summary.seconds
    lines.append("it was complete already" if seconds is None else f"done in {seconds:.1f} s")
    return "\n".join(lines)
