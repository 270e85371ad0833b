"""Folders that are written atomically, by one process or many, and can be checked for damage.

Writing has three phases. Rank 0 creates a hidden sibling of the folder (`begin`). Every process writes files into it,
hashes them and flushes them (`sealed`). Rank 0 writes a manifest with all sizes and SHA-256 hashes, then a marker with
the hash of the manifest, and renames the folder (`publish`). A crash of any process at any moment leaves the hidden
sibling, which is never read, or, on a file system where renaming is not atomic, a folder without a marker.
"""

import json
import shutil
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml.distributed import ALONE, World
from ml.files import flush_to_disk, sha256_of_file
from ml.run_files import read_json

MANIFEST = "manifest.json"
MARKER = "COMMITTED"


Entries = Mapping[str, Mapping[str, Any]]  # size and hash of each file, by its name


def temporary(folder: Path) -> Path:
    """Returns the hidden sibling in which `folder` is prepared."""
    return folder.with_name(f".{folder.name}.tmp")


def begin(folder: Path) -> None:
    """Creates the hidden sibling of `folder`, empty.

    Raises:
        OSError: The disk is full or the path is not writable.
    """
    discard(folder)
    temporary(folder).mkdir(parents=True)


def sealed(files: Iterable[Path]) -> Entries:
    """Flushes files to disk and returns their entries for the manifest."""
    entries = {file.name: {"size": file.stat().st_size, "sha256": sha256_of_file(file)} for file in files}
    for file in files:
        flush_to_disk(file)
    return entries


def publish(folder: Path, entries: Entries) -> None:
    """Creates or replaces `folder` by its hidden sibling, once all files are in it.

    Args:
        folder: The folder.
        entries: All files of all processes.

    Raises:
        OSError: The disk is full or the path is not writable.
    """
    hidden = temporary(folder)
    manifest, marker = hidden / MANIFEST, hidden / MARKER
    manifest.write_text(json.dumps({"files": dict(sorted(entries.items()))}, indent=1) + "\n", "utf-8")
    flush_to_disk(manifest)
    marker.write_text(_marker_of(manifest), "utf-8")
    for written in [marker, hidden]:
        flush_to_disk(written)
    shutil.rmtree(folder, ignore_errors=True)
    hidden.rename(folder)
    flush_to_disk(folder.parent)


def discard(folder: Path) -> None:
    """Removes the hidden sibling of `folder`."""
    shutil.rmtree(temporary(folder), ignore_errors=True)


def remove_leftovers(parent: Path) -> list[Path]:
    """Removes the hidden siblings of interrupted writes in `parent`; returns the paths they were meant for."""
    leftovers = sorted(parent.glob(".*.tmp"))
    for hidden in leftovers:
        shutil.rmtree(hidden, ignore_errors=True)
    return [path.with_name(path.name.removeprefix(".").removesuffix(".tmp")) for path in leftovers]


def damage(folder: Path, world: World = ALONE) -> str | None:
    """Checks a committed folder against its manifest; a collective call.

    Args:
        folder: The folder.
        world: The processes, which divide the files among them.

    Returns:
        The first problem, or None if every hash matches.
    """
    entries, problem = world.share(_manifest_of(folder) if world.is_first else None)
    if problem is not None:
        return problem
    by_size = sorted(entries, key=lambda name: (-entries[name]["size"], name))
    mine = sorted(by_size[world.rank :: world.size])
    problems = ((name, _damage_of_file(folder / name, **entries[name])) for name in mine)
    first = next(((name, text) for name, text in problems if text), None)
    found = [each for each in world.gather(first) if each]
    return min(found)[1] if found else None


def is_complete(folder: Path) -> bool:
    """Returns whether all files of a committed folder have the sizes in its manifest; compares no hashes."""
    entries, problem = _manifest_of(folder)
    return problem is None and all(
        _misfit_of_file(folder / name, entry["size"]) is None for name, entry in entries.items()
    )


def _manifest_of(folder: Path) -> tuple[Entries, str | None]:
    """Returns the entries of a committed folder, or a problem."""
    try:
        for name in (MARKER, MANIFEST):
            if not stat.S_ISREG((folder / name).lstat().st_mode):
                return {}, f"{name} is not a regular file"
        if (folder / MARKER).read_text("utf-8") != _marker_of(folder / MANIFEST):
            return {}, f"{MARKER} does not match {MANIFEST}"
        return _checked(read_json(folder / MANIFEST)), None
    except FileNotFoundError as error:
        return {}, f"{Path(error.filename).name} is missing: it was never finished, or lost since"
    except (OSError, ValueError) as error:
        return {}, f"it cannot be read: {error}"


def _checked(manifest: Any) -> Entries:
    """Returns the entries of a manifest, each with a file name, a size and a hash.

    Raises:
        ValueError: It has another form.
    """
    entries = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(entries, dict):
        raise ValueError(f"{MANIFEST} has no files")
    for name, entry in entries.items():
        if name in ("", "..") or name != Path(name).name or "\0" in name:
            raise ValueError(f"{MANIFEST} names {name!r}, which is not in the folder")
        fits = isinstance(entry, dict) and entry.keys() == {"size", "sha256"}
        if not fits or type(entry["size"]) is not int or not isinstance(entry["sha256"], str):
            raise ValueError(f"{MANIFEST} has no size and hash of {name!r}")
    return entries


def _marker_of(manifest: Path) -> str:
    return f"{MANIFEST} {sha256_of_file(manifest)}\n"


def _damage_of_file(file: Path, size: int, sha256: str) -> str | None:
    try:
        if problem := _misfit_of_file(file, size):
            return problem
        return None if sha256_of_file(file) == sha256 else f"{file.name} has changed since it was written"
    except OSError as error:
        return f"{file.name} cannot be read: {error.strerror}"


def _misfit_of_file(file: Path, size: int) -> str | None:
    try:
        found = file.lstat()
        if not stat.S_ISREG(found.st_mode):
            return f"{file.name} is not a regular file"
        if found.st_size != size:
            return f"{file.name} has {found.st_size} bytes instead of {size}"
        return None
    except FileNotFoundError:
        return f"{file.name} is missing"
    except OSError as error:
        return f"{file.name} cannot be read: {error.strerror}"
