"""Default corpus: the sources of Python's standard library, about 11 MB that every machine already has."""

import os
import sysconfig
from pathlib import Path

from ml.data.errors import DataError

# Tests are repetitive and contain unusual encodings on purpose; installed packages are not part of the library.
_SKIPPED_FOLDERS = {"__pycache__", "dist-packages", "idle_test", "site-packages", "test", "tests"}
_BUILD_FACTS = "_sysconfigdata"  # contains paths of the machine that built Python


def standard_library_files() -> tuple[Path, list[Path]]:
    """Returns the folder of the standard library and the `.py` files in it."""
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS]
        files += [Path(folder, name) for name in names if name.endswith(".py") and not name.startswith(_BUILD_FACTS)]
    if not files:
        raise DataError(f"this Python has no standard library sources in {root}; set TextFiles.paths")
    return root, files
