"""Preview the training data of a configuration or run: the first sequences decoded, and statistics.

What is learned is colored, or set between ⟦ and ⟧ where colors cannot be shown.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np

from ml.cli.path_argument import path_text
from ml.cli.run_arguments import add_trust_argument
from ml.errors import UserError

if TYPE_CHECKING:
    from ml.data import Dataset
    from ml.training import Trainer

_REPEATABLE: dict[str, tuple[Callable[[str], str], str]] = {
    "gin_file": (path_text, "a gin file, after CONFIG"),
    "gin_bindings": (str, "gin statements"),
    "gin_search_path": (path_text, "a search folder for gin files"),
}
_RULE = "──"
_MARKS = ("⟦", "⟧")
_ASCII_RULE = "--"
_ASCII_MARKS = ("[[", "]]")
_COLORS = ("\x1b[32m", "\x1b[0m")  # green


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", type=path_text, help="a gin file, or the folder of a run")
    for name, (kind, help_text) in _REPEATABLE.items():
        parser.add_argument(f"--{name}", type=kind, action="append", default=[], help=f"{help_text}; repeatable")
    parser.add_argument("--init_from", type=path_text, help="the run that the configuration starts from")
    parser.add_argument("--allow_unused_bindings", action="store_true", help="bindings without effect are warnings")
    parser.add_argument("--num_sequences", type=_count, default=3, help="number of sequences to show; 3 by default")
    add_trust_argument(parser)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a number of sequences, not {text!r}")
    return int(text)


def run(arguments: argparse.Namespace) -> None:
    """Opens the data, prints its first sequences and its statistics; nothing is trained or written."""
    from ml.api import build_trainer, load
    from ml.training.data_report import describe_data

    files = [*([] if arguments.config is None else [_config_file(arguments.config)]), *arguments.gin_file]
    if not files and not arguments.gin_bindings and arguments.init_from is None:
        raise UserError("no configuration: name a gin file or the folder of a run")
    config = load(
        files,
        arguments.gin_bindings,
        init_from=arguments.init_from,
        search_path=arguments.gin_search_path,
        allow_unused_bindings=arguments.allow_unused_bindings,
        trust_code=arguments.trust_run_code,
    )
    trainer = build_trainer(config)
    dataset = trainer.open_data().training
    for line in _preview(trainer, dataset, arguments.num_sequences, sys.stdout):
        print(line)
    print(describe_data(trainer, dataset))


def _config_file(name: str) -> str | Path:
    path = Path(name)
    if not path.is_dir():
        return name
    if not (path / "operative_config.gin").is_file():
        raise UserError(f"there is no run in {path}: it has no operative_config.gin")
    return path / "operative_config.gin"


def _preview(trainer: "Trainer", dataset: "Dataset", count: int, stream: TextIO) -> Iterator[str]:
    """Yields the lines of the first sequences of the run."""
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
