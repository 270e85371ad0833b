"""Compare two configurations or runs, by the values in effect and their sources.

Exit code 0 whether they differ or not, as `git diff` does.
"""

import argparse
from itertools import pairwise
from pathlib import Path
from textwrap import indent

import ml
from ml.cli.explain import read_provenance
from ml.cli.path_argument import path_text
from ml.cli.run_arguments import add_trust_argument
from ml.config.provenance import Record
from ml.config.scopes import compress
from ml.errors import UserError
from ml.run_files import segment_folders

Key = tuple[str, str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=path_text, help="the folder of a run, or a gin file")
    help_of_b = "the other; without it, what changed between the segments of the run"
    parser.add_argument("b", type=path_text, nargs="?", help=help_of_b)
    add_trust_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prints each parameter that differs, equal blocks together."""
    if arguments.b is None:
        _print_segments(Path(arguments.a))
        return
    ours, theirs = (_values(name, arguments.trust_run_code) for name in (arguments.a, arguments.b))
    print("\n".join(_differences(ours, theirs)) or "no difference")
    for name in (arguments.a, arguments.b):
        if earlier := list(segment_folders(Path(name)))[:-1]:
            steps = ", ".join(map(str, earlier))
            print(f"\n{name} has earlier segments (after step {steps}), not compared here: see diff {name}")


def _print_segments(run: Path) -> None:
    """Prints what changed between the segments of a run."""
    if not run.is_dir():
        raise UserError(f"{run} is not the folder of a run, whose segments could be compared: name a second one")
    values = {step: _values(str(folder), False) for step, folder in segment_folders(run).items()}
    if not values:
        read_provenance(run)
        print(f"{run} has one segment: it was never extended")
    for (_, before), (step, after) in pairwise(values.items()):
        print(f"after step {step}:\n" + indent("\n".join(_differences(before, after)) or "no difference", "    "))


def _differences(ours: dict[Key, Record], theirs: dict[Key, Record]) -> list[str]:
    groups: dict[tuple, list[tuple[str, ...]]] = {}
    for path, name, parameter in dict.fromkeys([*ours, *theirs]):
        a, b = ours.get((path, name, parameter)), theirs.get((path, name, parameter))
        if a is None or b is None or a.value != b.value:
            groups.setdefault((name, parameter, _said(a), _said(b)), []).append(tuple(path.split("/")) if path else ())
    lines = []
    for (name, parameter, a, b), paths in groups.items():
        places = [place for place in compress(paths) if place]
        lines += [f"{name}.{parameter}", *(f"    at {place}" for place in places), f"  - {a}", f"  + {b}"]
    return lines


def _values(name: str, trust_code: bool) -> dict[Key, Record]:
    records = read_provenance(Path(name)) if Path(name).is_dir() else ml.load(name, trust_code=trust_code).records()
    return {(record.path, record.configurable, record.parameter): record for record in records}


def _said(record: Record | None) -> str:
    if record is None:
        return "not built"
    return f"{record.value}    # {', '.join(filter(None, (record.source, record.location)))}"
