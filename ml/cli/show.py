"""Show what can be configured: the parameters of a configurable, with types, defaults and documentation."""

import argparse
import importlib
import inspect

import gin

from ml.config.configurable import Configurable, candidates, known_names
from ml.config.errors import did_you_mean
from ml.config.provenance import text_of
from ml.config.signatures import EMPTY
from ml.config.types import spell
from ml.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="of a configurable; without one, all are listed")
    parser.add_argument("--module", action="append", default=[], help="a module of yours to import first; repeatable")


def run(arguments: argparse.Namespace) -> None:
    """Prints one configurable, or the names of all."""
    for module in ("ml.training", *arguments.module):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"cannot import {module}: {error}") from error
    if arguments.name is None:
        infos = [info for name in known_names() for info in candidates(name)]
        print("\n".join(sorted(f"{info.name:<24}{info.selector.rpartition('.')[0]}" for info in infos)))
        return
    found = candidates(arguments.name)
    if not found:
        raise UserError(f"there is no configurable {arguments.name!r}{did_you_mean(arguments.name, known_names())}")
    print("\n\n".join(describe(info) for info in found))


def describe(info: Configurable) -> str:
    """One configurable for a person."""
    rows = [(spec.name, spell(spec.annotation), default_text(spec.default)) for spec in info.parameters.values()]
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    table = [f"  {name:<{widths[0]}}  {kind:<{widths[1]}}  {default}" for name, kind, default in rows]
    return "\n".join([f"{info.name} ({info.selector})", "", inspect.getdoc(info.target) or "", "", *table])


def default_text(value: object) -> str:
    """A default as gin text, or why there is none."""
    if value is EMPTY:
        return "decided by the parent"
    return "must be set" if value is gin.REQUIRED else text_of(value)
