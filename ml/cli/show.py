"""Show what can be configured: configurables and parameters, with types, defaults and documentation."""

import argparse
from collections.abc import Sequence

from ml.cli.catalogue import Entry, table
from ml.config.errors import did_you_mean
from ml.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        nargs="?",
        help="a configurable, or a parameter: bias or Linear.bias; without one, all are listed",
    )
    parser.add_argument("--module", action="append", default=[], help="a module of yours to import first; repeatable")


def run(arguments: argparse.Namespace) -> None:
    """Prints one configurable, the parameters of a name, or the names of all configurables."""
    entries = _entries(arguments.module)
    if arguments.name is None:
        print("\n".join(sorted(f"{entry.name:<24}{entry.selector.rpartition('.')[0]}" for entry in entries)))
        return
    print(lookup(entries, arguments.name))


def lookup(entries: Sequence[Entry], name: str) -> str:
    """Looks up a name: configurables, or else parameters.

    Raises:
        UserError: Nothing has that name.
    """
    named = [entry for entry in entries if entry.answers_to(name)]
    if named:
        return "\n\n".join(entry.text() for entry in named)
    owner, _, parameter = name.rpartition(".")
    owners = [entry for entry in entries if not owner or entry.answers_to(owner)]
    found = sorted(
        ((f"{e.name}.{p.name}", p.kind, p.default), e.descriptions.get(parameter, ""))
        for e in owners
        for p in e.parameters
        if p.name == parameter
    )
    if found:
        return "\n".join(table(*zip(*found, strict=True)))
    if owner and owners:
        known = [p.name for entry in owners for p in entry.parameters]
        raise UserError(f"{owner} has no parameter {parameter!r}{did_you_mean(parameter, known)}")
    known = [entry.name for entry in entries] + [p.name for entry in entries for p in entry.parameters]
    raise UserError(f"there is no configurable or parameter {name!r}{did_you_mean(name, known)}")


def _entries(modules: Sequence[str]) -> list[Entry]:
    """From the source, which takes no torch; from the registry for modules of users or where the source is unclear."""
    from ml.cli import registry_catalogue, source_catalogue

    if modules:
        return registry_catalogue.entries(modules)
    try:
        return source_catalogue.entries()
    except source_catalogue.UnclearError:
        return registry_catalogue.entries()
