"""Explain a run: the source and location of the parameters that match a pattern, and the values they overrode."""

import argparse
from pathlib import Path
from textwrap import indent

from ml.cli.path_argument import to_path
from ml.config.provenance import Record, explain, select
from ml.errors import UserError
from ml.run_files import read_json, require_self_contained, segment_folders


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=to_path, help="the folder of a run")
    parser.add_argument("pattern", help="written like a binding: 'query/Linear.bias', 'Attention.*', 'dropout'")


def run(arguments: argparse.Namespace) -> None:
    """Prints the matching parameters, equal blocks together; those of each segment where they differ."""
    newest = select(iter(read_provenance(arguments.run)), arguments.pattern)
    folders = segment_folders(arguments.run)
    found = {step: select(iter(read_provenance(folder)), arguments.pattern) for step, folder in folders.items()}
    if not newest and not any(found.values()):
        raise UserError(f"no parameter of {arguments.run} matches {arguments.pattern!r}")
    values = [[(r.path, r.configurable, r.parameter, r.value) for r in records] for records in found.values()]
    if all(one == values[0] for one in values):
        print(explain(newest))
        return
    for step, records in found.items():
        print(f"after step {step}:\n{indent(explain(records) or 'not built', '    ')}")


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
