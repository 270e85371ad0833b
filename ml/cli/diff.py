"""Compare two configurations or runs, by the values in effect and their sources.

Exit code 0 whether they differ or not, as `git diff` does.
"""

import argparse
from pathlib import Path

import ml
from ml.cli.explain import read_provenance
from ml.cli.run_arguments import add_trust_argument
from ml.config.provenance import Record
from ml.config.scopes import compress

Key = tuple[str, str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", help="the folder of a run, or a gin file")
    parser.add_argument("b", help="the other")
    add_trust_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prints each parameter that differs, equal blocks together."""
    ours, theirs = (_values(name, arguments.trust_run_code) for name in (arguments.a, arguments.b))
    groups: dict[tuple, list[tuple[str, ...]]] = {}
    for path, name, parameter in dict.fromkeys([*ours, *theirs]):
        a, b = ours.get((path, name, parameter)), theirs.get((path, name, parameter))
        if a is None or b is None or a.value != b.value:
            groups.setdefault((name, parameter, _said(a), _said(b)), []).append(tuple(path.split("/")) if path else ())
    lines = []
    for (name, parameter, a, b), paths in groups.items():
        places = [place for place in compress(paths) if place]
        lines += [f"{name}.{parameter}", *(f"    at {place}" for place in places), f"  - {a}", f"  + {b}"]
    print("\n".join(lines) or "no difference")


def _values(name: str, trust_code: bool) -> dict[Key, Record]:
    records = read_provenance(Path(name)) if Path(name).is_dir() else ml.load(name, trust_code=trust_code).records()
    return {(record.path, record.configurable, record.parameter): record for record in records}


def _said(record: Record | None) -> str:
    if record is None:
        return "not built"
    return f"{record.value}    # {', '.join(filter(None, (record.source, record.location)))}"
