"""The flags of verbs that open a run."""

import argparse

from ml.cli.path_argument import path_text


def add_run_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the folder of a run, and whether the code in it is executed."""
    parser.add_argument("run", type=path_text, help="the folder of a run, or a Hugging Face folder")
    add_trust_argument(parser)


def add_step_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--step`, the checkpoint of a run."""
    parser.add_argument(
        "--step", type=_step, help="step of the checkpoint, or best (see Checkpoints.keep_best); the newest by default"
    )


def _step(text: str) -> int | str:
    if text == "best":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number or best, not {text!r}") from None


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--trust_run_code`, which executes the copy of custom modules in a run folder."""
    parser.add_argument("--trust_run_code", action="store_true", help="execute the copy of its own code in the run")
