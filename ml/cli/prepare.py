"""Turn text, JSON, CSV, Parquet or Arrow into token files."""

import argparse
import collections
import sys

from ml.cli.path_argument import to_path
from ml.cli.preparation_display import display_on
from ml.cli.source_arguments import add_source_arguments, reading_of, sources_of
from ml.cli.tokenizer_arguments import add_tokenizer_arguments, chosen_tokenizer
from ml.errors import UserError
from ml.machine import num_usable_cores

_WITHOUT_END = (
    "warning: the tokenizer has no end-of-document token, so that nothing marks where a document ends; choose one with "
    "its parameter end_of_document, or add one with added_tokens"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source_arguments(parser)
    add_tokenizer_arguments(parser)
    parser.add_argument("--output", type=to_path, required=True, help="folder to write")
    parser.add_argument(
        "--validation_fraction", type=float, default=0.0, help="fraction of documents held out (default 0)"
    )
    parser.add_argument(
        "--hold_out_by",
        choices=("name", "content"),
        default="name",
        help="content: equal text files are on the same side of the split (default name)",
    )
    parser.add_argument("--num_workers", type=int, help="worker processes (default: number of cores)")
    parser.add_argument("--shard_tokens", type=int, default=2**30, help="tokens per shard (default 2^30)")
    parser.add_argument("--verify", action="store_true", help="only check the hashes of --output")


def run(arguments: argparse.Namespace) -> None:
    """Prepares or resumes, then prints a summary; with --verify, checks the output."""
    if arguments.verify:
        _verify(arguments)
    else:
        _prepare(arguments)


def _prepare(arguments: argparse.Namespace) -> None:
    from ml.data.preparation import Settings, prepare

    settings = Settings(
        arguments.output,
        reading_of(arguments, arguments.validation_fraction, arguments.hold_out_by),
        _positive("shard_tokens", arguments.shard_tokens),
        num_usable_cores() if arguments.num_workers is None else _positive("num_workers", arguments.num_workers),
    )
    tokenizer = chosen_tokenizer(arguments)
    sources = sources_of(arguments, settings.reading)
    print(_formats_line(sources))
    print(_borders_line(tokenizer))
    if tokenizer.end_of_document is None:
        print(_WITHOUT_END, file=sys.stderr)
    display = display_on(sys.stdout)
    try:
        summary = prepare(sources, tokenizer, settings, display)
    finally:
        display.close()
    print("\n".join(_summary_lines(summary)))


def _verify(arguments: argparse.Namespace) -> None:
    from ml.data.token_files.reading import TokenFolder, find_token_folders

    if arguments.sources:
        raise UserError("--verify reads only --output; omit the sources")
    for path in find_token_folders(arguments.output):
        if path is not None:
            TokenFolder(path).verify()
            print(f"{path} is intact")


def _positive(name: str, number: int) -> int:
    if number < 1:
        raise UserError(f"--{name} must be positive, not {number}")
    return number


def _formats_line(sources) -> str:
    """Returns the number of files of each format, so that a file in an unexpected one is noticed."""
    counts = collections.Counter("text" if source.format is None else source.format.name for source in sources)
    return ", ".join(f"{name}: {count:,} files" for name, count in counts.items())


def _borders_line(tokenizer) -> str:
    """Returns the tokens at the borders of documents."""
    end, begin = tokenizer.end_of_document, tokenizer.begin_of_document
    after = "documents have no end token" if end is None else f"documents end with {_named(tokenizer, end)}"
    if begin is not None:
        return f"{after} and begin with {_named(tokenizer, begin)}, which is inserted when they are read"
    return after if end is None else f"{after}; separated ones begin with it too, inserted when they are read"


def _named(tokenizer, token: int) -> str:
    names = {special.id: name for name, special in tokenizer.control_tokens.items()}
    return f"{names[token]} (token {token})" if token in names else f"token {token}"


def _summary_lines(summary) -> list[str]:
    """Returns the summary, one line for each fact."""
    from ml.data.preparation import COUNTS

    lines = [f"{count:,} {COUNTS[kind]}" for kind, count in summary.counts.items()]
    for folder in summary.folders:
        rate = f" ({folder.num_bytes / folder.num_tokens:.2f} a token)" if folder.num_tokens else ""
        lines.append(
            f"{folder.path}: {folder.num_documents:,} documents, {folder.num_tokens:,} tokens, "
            f"{folder.num_bytes:,} bytes{rate}"
        )
        if not folder.num_documents:
            lines.append(f"{folder.path} is empty: too few documents for this --validation_fraction")
    return [*lines, "already complete" if summary.seconds is None else f"done in {summary.seconds:.1f} s"]
