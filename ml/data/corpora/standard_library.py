"""The default corpus: the sources of Python's standard library, about 11 MB that every machine already has."""

import os
import sysconfig
from pathlib import Path

from ml.data.errors import DataError

# Tests repeat themselves and hold odd encodings on purpose; what is installed is no part of the library.
_SKIPPED_FOLDERS = {"__pycache__", "dist-packages", "idle_test", "site-packages", "test", "tests"}
_BUILD_FACTS = "_sysconfigdata"  # names the folders of the machine that built Python


def standard_library_files() -> tuple[Path, list[Path]]:
    """Its folder and the `.py` files in it."""
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS]
        files += [Path(folder, name) for name in names if name.endswith(".py") and not name.startswith(_BUILD_FACTS)]
    if not files:
        raise DataError(f"this Python has no sources of its standard library in {root}: set TextFiles.paths")
    return root, files
