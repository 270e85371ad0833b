"""The flags of verbs that open a run."""

import argparse


def add_run_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the folder of a run, and whether the code in it is executed."""
    parser.add_argument("run", help="the folder of a run")
    add_trust_argument(parser)


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--trust_run_code`, which executes the copy of custom modules in a run folder."""
    parser.add_argument("--trust_run_code", action="store_true", help="execute the copy of its own code in the run")
