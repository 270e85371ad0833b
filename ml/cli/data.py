"""Preview the training data of a configuration or run: the first sequences decoded, and statistics.

What is learned is colored, or set between ⟦ and ⟧ where colors cannot be shown.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from ml.cli.config_arguments import add_config_arguments, config_of

if TYPE_CHECKING:
    from ml.data import Dataset
    from ml.training import Trainer

_RULE = "──"
_MARKS = ("⟦", "⟧")
_ASCII_RULE = "--"
_ASCII_MARKS = ("[[", "]]")
_COLORS = ("\x1b[32m", "\x1b[0m")  # green


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--num_sequences", type=_count, default=3, help="number of sequences to show; 3 by default")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a number of sequences, not {text!r}")
    return int(text)


def run(arguments: argparse.Namespace) -> None:
    """Opens the data, prints its first sequences and its statistics; nothing is trained or written."""
    from ml.api import build_trainer
    from ml.training.data_report import describe_data

    trainer = build_trainer(config_of(arguments))
    dataset = trainer.open_data().training
    for line in _preview(trainer, dataset, arguments.num_sequences, sys.stdout):
        print(line)
    print(describe_data(trainer, dataset))


def _preview(trainer: "Trainer", dataset: "Dataset", count: int, stream: TextIO) -> Iterator[str]:
    """Yields the lines of the first sequences of the run."""
    import numpy as np

    from ml.data.preview import Reader, documents

    images = trainer.image_format
    reader = Reader(dataset.tokenizer, None if images is None else images.token_id)
    rule, marks = _style(stream)
    batch = dataset.sequences(np.arange(count)).require_below(trainer.model.vocab_size)
    has_pairs = batch.num_pairs > 0
    for row in range(count):
        yield f"sequence {row + 1}"
        for number, spans in enumerate(documents(batch, row, trainer.data.separator.token), start=1):
            total = sum(len(span.tokens) for span in spans)
            learned = sum(len(span.tokens) for span in spans if span.is_learned)
            yield f"{rule} {_name(number, has_pairs)}: {total:,} tokens, {learned:,} learned"
            texts = ((reader.text(span.tokens), span.is_learned) for span in spans)
            yield "".join(f"{marks[0]}{text}{marks[1]}" if is_learned else text for text, is_learned in texts)
        yield ""


def _name(number: int, has_pairs: bool) -> str:
    """Returns the name of a document by its number, from 1."""
    if not has_pairs:
        return f"document {number}"
    return f"pair {(number + 1) // 2}, {'chosen' if number % 2 else 'rejected'}"


def _style(stream: TextIO) -> tuple[str, tuple[str, str]]:
    """Returns what precedes the head of a document, and what encloses learned text."""
    try:
        "".join((_RULE, *_MARKS)).encode(stream.encoding or "ascii")
        rule, marks = _RULE, _MARKS
    except UnicodeEncodeError:
        rule, marks = _ASCII_RULE, _ASCII_MARKS
    return rule, _COLORS if stream.isatty() and not os.environ.get("NO_COLOR") else marks
