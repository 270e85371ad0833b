"""Explain a run: the source and location of the parameters that match a pattern, and the values they overrode."""

import argparse
from pathlib import Path

from ml.config.provenance import Record, explain, select
from ml.errors import UserError
from ml.run_files import read_json, require_self_contained


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("pattern", help="written like a binding: 'query/Linear.bias', 'Attention.*', 'dropout'")


def run(arguments: argparse.Namespace) -> None:
    """Prints the matching parameters, equal blocks together."""
    found = select(iter(read_provenance(arguments.run)), arguments.pattern)
    if not found:
        raise UserError(f"no parameter of {arguments.run} matches {arguments.pattern!r}")
    print(explain(found))


def read_provenance(folder: Path) -> list[Record]:
    """The records of a run.

    Raises:
        UserError: where there is no run, or its provenance cannot be read.
    """
    path = folder / "provenance.json"
    require_self_contained(folder)
    try:
        return [Record.from_json(record) for record in read_json(path)["records"]]
    except FileNotFoundError:
        raise UserError(f"there is no run in {folder}: it has no provenance.json") from None
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
