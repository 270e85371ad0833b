"""Train a byte pair encoding on text, JSON, CSV, Parquet or Arrow."""

import argparse
import sys

from ml.cli.path_argument import to_path
from ml.cli.source_arguments import add_source_arguments, reading_of, sources_of
from ml.errors import RunFailure, UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source_arguments(parser)
    parser.add_argument("--output", type=to_path, required=True, help="tokenizer.json to write")
    parser.add_argument("--vocab_size", type=int, required=True, help="number of tokens, such as 8192")
    parser.add_argument(
        "--special_token", action="append", help='repeatable (default "<|endoftext|>", which ends a document)'
    )


def run(arguments: argparse.Namespace) -> None:
    """Writes a tokenizer.json, for `HuggingFaceTokenizer.path`."""
    from ml.data.preparation import COUNTS, Findings, texts_of
    from ml.data.tokenizers.training import NUM_BYTES, train_byte_pairs

    special = arguments.special_token or ["<|endoftext|>"]
    if arguments.vocab_size <= NUM_BYTES + len(special):
        raise UserError(
            f"--vocab_size must be above {NUM_BYTES + len(special)}, the bytes and the special tokens, not "
            f"{arguments.vocab_size}"
        )
    if arguments.output.exists():
        raise UserError(f"{arguments.output} (--output) already exists; choose another file")
    reading = reading_of(arguments)
    sources = sources_of(arguments, reading)
    findings = Findings()
    texts = texts_of(sources, reading, findings)
    try:
        size = train_byte_pairs(texts, arguments.output, arguments.vocab_size, special, sys.stderr.isatty())
    except OSError as error:
        raise RunFailure(f"cannot write {arguments.output}: {error.strerror or error}") from error
    print(f"{arguments.output}: {size:,} tokens, trained on {len(sources):,} files")
    for kind, count in findings.counts.items():
        print(f"{count:,} {COUNTS[kind]}, the first: {findings.notes[kind][0]}")
    if size < arguments.vocab_size:
        print(f"fewer than {arguments.vocab_size:,}: no other pair occurs twice in the text")
