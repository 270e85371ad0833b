"""Tokenize the conversations of a configuration once, for ChatData.prepared."""

import argparse
import sys
import time

from ml import terminal
from ml.cli.config_arguments import add_config_arguments, config_of
from ml.cli.path_argument import to_path
from ml.errors import UserError
from ml.machine import num_usable_cores

_SECONDS_BETWEEN_LINES = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--output", type=to_path, required=True, help="folder to write")
    parser.add_argument("--num_workers", type=int, help="worker processes (default: number of cores)")


def run(arguments: argparse.Namespace) -> None:
    """Writes the tokens, masks and borders of the conversations, and prints a summary."""
    from ml.api import build_trainer
    from ml.data import ChatData
    from ml.data.preparation.conversations import prepare_conversations

    num_workers = num_usable_cores() if arguments.num_workers is None else arguments.num_workers
    if num_workers < 1:
        raise UserError(f"--num_workers must be positive, not {num_workers}")
    data = build_trainer(config_of(arguments)).data
    if not isinstance(data, ChatData):
        raise UserError(f"Trainer.data of the configuration must be ChatData, not {type(data).__name__}")
    started, progress = time.monotonic(), _Progress()
    summary = prepare_conversations(
        data.corpus.conversations(), data.chat, arguments.output, num_workers, data.corpus.on_error, progress.advance
    )
    seconds = time.monotonic() - started
    progress.close()
    learned = summary.num_targets / max(summary.num_tokens, 1)
    print(
        f"{arguments.output}: {summary.num_conversations:,} conversations, {summary.num_tokens:,} tokens "
        f"({learned:.1%} learned), done in {seconds:.1f} s ({summary.num_conversations / seconds:,.0f} a second)"
    )
    print(f"train with ChatData.prepared = {str(arguments.output)!r}")


class _Progress:
    """A line that is redrawn on a terminal, or one every ten seconds elsewhere."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._last = time.monotonic()

    def advance(self, count: int) -> None:
        line = f"{count:,} conversations"
        if self._is_terminal:
            terminal.redraw(sys.stdout, line)
        elif time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            print(line, flush=True)

    def close(self) -> None:
        if self._is_terminal:
            terminal.redraw(sys.stdout, "")
