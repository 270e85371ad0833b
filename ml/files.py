"""Files: whole or not there, hashed, and locked."""

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replaces `path` by `content`; a crash leaves the old file or the new one, and no link is followed."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    flush_to_disk(path.parent)


def flush_to_disk(path: Path) -> None:
    """Returns when the content of a file, or the names in a folder, would survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of the content of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reason_of(error: BaseException) -> str:
    """The reason of a failed write in words: that of the system, which a library may have replaced, or the message."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error)


def is_full(error: OSError) -> bool:
    """True if the disk, the quota or the limit on the size of files left no room."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class LockedError(Exception):
    """Another process holds a lock."""


@contextlib.contextmanager
def locked(path: Path, *, kept_by_children: bool) -> Iterator[int]:
    """Holds a lock on a file or folder; the system releases it when the process ends, however it does.

    On a file system without locks nothing is locked.

    Args:
        path: A folder, or a file, which is made.
        kept_by_children: Whether processes that inherit the descriptor keep the lock after this one.

    Yields:
        The descriptor that holds the lock.

    Raises:
        LockedError: Another process holds the lock.
        OSError: The file cannot be opened.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    lock = fcntl.flock if kept_by_children else fcntl.lockf
    with _opened(path, flags) as descriptor:
        _lock(lock, descriptor, fcntl.LOCK_EX, path)
        yield descriptor


@contextlib.contextmanager
def locked_folder(folder: Path, *, shared: bool) -> Iterator[int]:
    """Holds a lock on a folder that exists, as `locked` does; children that inherit the descriptor keep it.

    Args:
        folder: The folder.
        shared: Whether others may hold shared locks at the same time.

    Yields:
        The descriptor that holds the lock.

    Raises:
        LockedError: Another process holds a lock that excludes this one.
        OSError: There is no such folder.
    """
    with _opened(folder, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        _lock(fcntl.flock, descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, folder)
        yield descriptor


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(lock: Callable[[int, int], None], descriptor: int, kind: int, path: Path) -> None:
    try:
        lock(descriptor, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX lets lockf report either
        raise LockedError(f"another process holds {path}") from None
    except OSError:  # the file system has no locks
        pass
