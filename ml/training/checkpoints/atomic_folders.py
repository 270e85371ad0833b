"""Folders that are written atomically and can be checked for damage.

The files are written to a hidden sibling and flushed, then a manifest with their sizes and SHA-256 hashes, and last a
marker with the hash of the manifest; then the folder is renamed. A crash at any moment leaves the hidden sibling, which
is never read, or, on a file system where renaming is not atomic, a folder without a marker.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from ml.files import flush_to_disk, sha256_of_file

MANIFEST = "manifest.json"
MARKER = "COMMITTED"


def commit(folder: Path, write: Callable[[Path], None]) -> None:
    """Creates or replaces `folder` atomically.

    Args:
        folder: The folder to create.
        write: Writes the files into the temporary folder that it is called with.

    Raises:
        OSError: The disk is full or the path is not writable; no temporary file remains.
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
    """Removes the temporary folders of interrupted commits in `parent`; returns the paths they were meant for."""
    leftovers = sorted(parent.glob(".*.tmp"))
    for temporary in leftovers:
        shutil.rmtree(temporary, ignore_errors=True)
    return [path.with_name(path.name.removeprefix(".").removesuffix(".tmp")) for path in leftovers]


def damage(folder: Path) -> str | None:
    """Checks a committed folder against its manifest; returns the first problem, or None if every hash matches."""
    try:
        if (folder / MARKER).read_text("utf-8") != _marker_of(folder / MANIFEST):
            return f"{MARKER} does not match {MANIFEST}"
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
