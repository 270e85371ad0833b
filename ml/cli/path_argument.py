"""Types of arguments that are paths: an empty one, as of an unset variable of a shell, is refused."""

import argparse
from pathlib import Path


def path_text(text: str) -> str:
    """Returns a path as given."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; it must be a path")
    return text


def to_path(text: str) -> Path:
    """Returns a path."""
    return Path(path_text(text))
