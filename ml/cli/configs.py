"""List, show or copy the configurations that come with Juniper."""

import argparse
import re
from pathlib import Path

import ml
from ml.cli.path_argument import to_path
from ml.config.errors import did_you_mean
from ml.errors import UserError
from ml.files import write_atomically


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="name each with its first line")
    shown = actions.add_parser("show", help="print one")
    shown.add_argument("name", help="as in base.gin or recipes/tiny.gin")
    copied = actions.add_parser("copy", help="write one to a file of yours, to change it")
    copied.add_argument("name", help="as in base.gin or recipes/tiny.gin")
    copied.add_argument(
        "destination", nargs="?", type=to_path, default=Path(), help="a file or folder; by default here"
    )


def run(arguments: argparse.Namespace) -> None:
    """Does what was asked."""
    if arguments.action == "list":
        print("\n".join(f"{name:<28}{_first_comment(path)}" for name, path in _shipped().items()))
        return
    path = _find(arguments.name)
    if arguments.action == "show":
        print(path.read_text(encoding="utf-8"), end="")
        return
    destination = arguments.destination / path.name if arguments.destination.is_dir() else arguments.destination
    if destination.exists():
        raise UserError(f"{destination} exists already: name another file")
    try:
        write_atomically(destination, path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot write {destination}: {error.strerror}") from error
    print(destination)


def _shipped() -> dict[str, Path]:
    root = ml.SHIPPED_CONFIGS
    paths = sorted([*root.rglob("*.gin"), *root.rglob("*.toml")])
    return {path.relative_to(root).as_posix(): path for path in paths}


def _find(name: str) -> Path:
    shipped = _shipped()
    if name not in shipped:
        raise UserError(f"there is no shipped configuration {name!r}{did_you_mean(name, shipped)}")
    return shipped[name]


def _first_comment(path: Path) -> str:
    """First phrase of the head comment of a file, up to a colon, bracket or full stop."""
    lines = [line.lstrip("# ") for line in path.read_text(encoding="utf-8").split("\n\n")[0].splitlines()]
    return re.split(r"\s*[:(]|\.\s|\.$", " ".join(lines))[0]
