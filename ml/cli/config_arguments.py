"""The arguments of verbs that take a configuration, as training does, or the folder of a run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ml.cli.path_argument import path_text
from ml.cli.run_arguments import add_trust_argument
from ml.errors import UserError

if TYPE_CHECKING:
    from ml.config import Config

_REPEATABLE: dict[str, tuple[Callable[[str], str], str]] = {
    "gin_file": (path_text, "a gin file, after CONFIG"),
    "gin_bindings": (str, "gin statements"),
    "gin_search_path": (path_text, "a search folder for gin files"),
}


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the gin file or the run, and the gin flags."""
    parser.add_argument("config", nargs="?", type=path_text, help="a gin file, or the folder of a run")
    for name, (kind, help_text) in _REPEATABLE.items():
        parser.add_argument(f"--{name}", type=kind, action="append", default=[], help=f"{help_text}; repeatable")
    parser.add_argument("--init_from", type=path_text, help="the run that the configuration starts from")
    parser.add_argument("--allow_unused_bindings", action="store_true", help="bindings without effect are warnings")
    add_trust_argument(parser)


def config_of(arguments: argparse.Namespace) -> Config:
    """Loads the configuration.

    Raises:
        UserError: None is named, or it is wrong.
    """
    from ml.api import load

    files = [*([] if arguments.config is None else [_config_file(arguments.config)]), *arguments.gin_file]
    if not files and not arguments.gin_bindings and arguments.init_from is None:
        raise UserError("no configuration: name a gin file or the folder of a run")
    return load(
        files,
        arguments.gin_bindings,
        init_from=arguments.init_from,
        search_path=arguments.gin_search_path,
        allow_unused_bindings=arguments.allow_unused_bindings,
        trust_code=arguments.trust_run_code,
    )


def _config_file(name: str) -> str | Path:
    path = Path(name)
    if not path.is_dir():
        return name
    if not (path / "operative_config.gin").is_file():
        raise UserError(f"there is no run in {path}: it has no operative_config.gin")
    return path / "operative_config.gin"
