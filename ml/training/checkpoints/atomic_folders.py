"""Folders that are written whole or not at all, and that know when they were damaged.

The files are written to a hidden sibling and flushed, then a manifest with their sizes and SHA-256 hashes, and last a
marker with the hash of the manifest; then the folder is renamed. A crash at any moment leaves the hidden sibling, which
nobody reads, or, on a file system where renaming is not atomic, a folder without a marker.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from ml.files import flush_to_disk, sha256_of_file

MANIFEST = "manifest.json"
MARKER = "COMMITTED"


def commit(folder: Path, write: Callable[[Path], None]) -> None:
    """Makes `folder` from the files that `write(temporary_folder)` leaves; a folder that was there is replaced.

    Raises:
        OSError: The disk is full or the place cannot be written to; nothing is left behind.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        _seal(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        flush_to_disk(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_leftovers(parent: Path) -> list[Path]:
    """Removes what commits that never ended left in `parent`; returns the folders that they were to be."""
    leftovers = sorted(parent.glob(".*.tmp"))
    for temporary in leftovers:
        shutil.rmtree(temporary, ignore_errors=True)
    return [path.with_name(path.name.removeprefix(".").removesuffix(".tmp")) for path in leftovers]


def damage(folder: Path) -> str | None:
    """What is wrong with a committed folder, or None when every byte is as it was written."""
    try:
        if (folder / MARKER).read_text("utf-8") != _marker_of(folder / MANIFEST):
            return f"{MARKER} is not that of its {MANIFEST}"
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing: it was never finished, or lost since"
    except (OSError, ValueError) as error:
        return f"it cannot be read: {error}"
    problems = (
        _damage_of_file(folder / name, entry["size"], entry["sha256"])
        for name, entry in sorted(manifest["files"].items())
    )
    return next((problem for problem in problems if problem), None)


def _seal(folder: Path) -> None:
    files = sorted(file for file in folder.iterdir() if file.is_file())
    entries = {file.name: {"size": file.stat().st_size, "sha256": sha256_of_file(file)} for file in files}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"files": entries}, indent=1) + "\n", "utf-8")
    for written in [*files, manifest]:
        flush_to_disk(written)
    marker = folder / MARKER
    marker.write_text(_marker_of(manifest), "utf-8")
    for written in [marker, folder]:
        flush_to_disk(written)


def _marker_of(manifest: Path) -> str:
    return f"{MANIFEST} {sha256_of_file(manifest)}\n"


def _damage_of_file(file: Path, size: int, sha256: str) -> str | None:
    try:
        actual_size = file.stat().st_size
        if actual_size != size:
            return f"{file.name} has {actual_size} bytes instead of {size}"
        return None if sha256_of_file(file) == sha256 else f"{file.name} has changed since it was written"
    except FileNotFoundError:
        return f"{file.name} is missing"
    except OSError as error:
        return f"{file.name} cannot be read: {error.strerror}"
