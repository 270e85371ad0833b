"""Locks between processes that read a checkpoint and the training that removes it.

A reader holds a shared lock on the folder of a checkpoint. Training removes only checkpoints without such a lock, and
moves them out of sight first. A file system without locks has no such guarantee: there a reader finds the checkpoint
removed.
"""

import contextlib
import os
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

from ml.files import LockedError, locked_folder

_REMOVED = ".removed"


@contextlib.contextmanager
def held(checkpoint: Path) -> Iterator[bool]:
    """Keeps a checkpoint from being removed inside the context.

    Args:
        checkpoint: The folder of the checkpoint.

    Yields:
        False if the checkpoint is being removed, or was.
    """
    with contextlib.ExitStack() as stack:
        try:
            descriptor = stack.enter_context(locked_folder(checkpoint, shared=True))
            is_there = os.path.samestat(os.fstat(descriptor), checkpoint.stat())
        except (FileNotFoundError, LockedError):
            is_there = False
        except OSError:  # reading reports it
            is_there = True
        yield is_there


class Hold:
    """Keeps checkpoints from being removed until it is released or garbage collected.

    Attributes:
        stack: The open contexts of `held`.
    """

    def __init__(self) -> None:
        self.stack = contextlib.ExitStack()
        weakref.finalize(self, self.stack.close)

    def release(self) -> None:
        """Allows training to remove the checkpoints."""
        self.stack.close()


def remove_unless_held(checkpoint: Path) -> bool:
    """Removes a checkpoint unless another process reads it; returns whether it is gone."""
    hidden = checkpoint.with_name(f".{checkpoint.name}{_REMOVED}")
    try:
        with locked_folder(checkpoint, shared=False):
            checkpoint.rename(hidden)
    except (OSError, LockedError):
        return not checkpoint.exists()
    shutil.rmtree(hidden, ignore_errors=True)
    return True


def finish_removals(folder: Path) -> None:
    """Removes the remains of removals that a crash interrupted."""
    for hidden in folder.glob(f".*{_REMOVED}"):
        shutil.rmtree(hidden, ignore_errors=True)
