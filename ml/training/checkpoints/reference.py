"""References to a checkpoint of another run: its folder, its step, and a hash that identifies its tensors."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from ml.training.checkpoints.atomic_folders import MANIFEST, damage
from ml.training.checkpoints.holding import Hold, held
from ml.training.checkpoints.policy import hold_checkpoint, listed_checkpoints
from ml.training.checkpoints.state_files import read_counts
from ml.training.checkpoints.tensor_files import tensor_shapes
from ml.training.errors import RunError

_SUFFIX = ".distcp"  # of a file of tensors
_SHOWN = 12  # digits of a hash in a message


class FoundCheckpoint(NamedTuple):
    """A valid checkpoint.

    Attributes:
        path: The folder of the checkpoint.
        step: The step of the run that wrote it.
        sha256: The hash of its tensors.
    """

    path: Path
    step: int
    sha256: str

    def __str__(self) -> str:
        return f"step {self.step} ({self.path}, SHA-256 {self.sha256[:_SHOWN]})"


class CheckpointReference(NamedTuple):
    """A checkpoint as a user names it.

    Attributes:
        folder: The folder of the run; also that of its checkpoints, or of a single one.
        step: The step; None for that of the hash, or the newest valid one.
        sha256: The hash of the tensors, which identifies the checkpoint wherever it lies; None for any.
    """

    folder: Path
    step: int | None = None
    sha256: str | None = None

    @property
    def is_pinned(self) -> bool:
        """True if step and hash are set, so that no other checkpoint can take its place."""
        return self.step is not None and self.sha256 is not None

    def find(self, stack: ExitStack) -> FoundCheckpoint:
        """Finds the checkpoint and verifies its files.

        Args:
            stack: Holds the checkpoint: until it is closed, a run that is training does not remove it.

        Raises:
            RunError: There is no such checkpoint, or it is damaged.
        """
        if not self.folder.is_dir():
            raise RunError(f"{self._lost()}there is no run in {self.folder}{self._advice()}")
        if self.sha256 is None and (self.folder / MANIFEST).is_file():
            return self._checked(self.folder, stack)
        if self.sha256 is None:
            return _found(hold_checkpoint(self._parent(), self.step, stack))
        for path in self._candidates():
            if _sha256_or_none(path) == self.sha256:
                return self._checked(path, stack)
        raise RunError(f"{self._lost()}it has no checkpoint with that hash{self._advice()}")

    def recorded(self, values: Mapping[str, Any], folder: str | None) -> "CheckpointReference | None":
        """Returns the reference with the step and the hash that a run has recorded; None if it names another one.

        Args:
            values: The values `step` and `sha256` of the run that is resumed; empty for a new run.
            folder: The folder that the resumed run names; None for a new run.
        """
        earlier = CheckpointReference(self.folder, values.get("step"), values.get("sha256"))
        agrees = all(ours in (None, theirs) for ours, theirs in zip(self[1:], earlier[1:], strict=True))
        is_gone = not self.folder.exists()  # and no other run
        is_it = earlier.is_pinned and agrees and (is_gone or self._is_same_folder(folder) or earlier._is_there())
        return earlier if is_it else None

    def _checked(self, path: Path, stack: ExitStack) -> FoundCheckpoint:
        is_there = stack.enter_context(held(path))
        if problem := damage(path) if is_there else "it was removed meanwhile":
            raise RunError(f"the checkpoint {path} cannot be used: {problem}")
        found = _found(path)
        if self.step not in (None, found.step):
            raise RunError(
                f"step {self.step} and the SHA-256 {found.sha256[:_SHOWN]} do not go together: that is step "
                f"{found.step} in {path}. Set the hash to None, or give both again by --init_from and --init_step"
            )
        return found

    def _is_there(self) -> bool:
        return any(_sha256_or_none(path) == self.sha256 for path in self._candidates())

    def _is_same_folder(self, other: str | None) -> bool:
        return other is not None and Path(other).resolve() == self.folder.resolve()

    def _parent(self) -> Path:
        """Returns the folder that holds the checkpoints."""
        inside = self.folder / "checkpoints"
        if inside.is_dir():
            return inside
        return self.folder.parent if (self.folder / MANIFEST).is_file() else self.folder

    def _candidates(self) -> Iterator[Path]:
        if (self.folder / MANIFEST).is_file():
            yield self.folder
        for _, path in reversed(listed_checkpoints(self._parent())):
            yield path

    def _lost(self) -> str:
        """Names the weights that are looked for; empty if any would do."""
        if self.sha256 is None:
            return ""
        wanted = f"step {self.step}" if self.step is not None else "any step"
        return f"the weights of {wanted} with the SHA-256 {self.sha256[:_SHOWN]} are not in {self.folder}: "

    def _advice(self) -> str:
        if self.sha256 is None:
            return ""
        return (
            ". If the run was moved, name its new folder (--init_from, Distillation.teacher), with the same command "
            "otherwise"
        )


class CheckpointSource:
    """The checkpoint of another run that a run uses: found and verified once, and held until it is released.

    Args:
        reference: The checkpoint as a user names it.
    """

    def __init__(self, reference: CheckpointReference):
        self.reference = reference
        self._found: FoundCheckpoint | None = None
        self._hold = Hold()

    def find(self) -> FoundCheckpoint:
        """Finds, verifies and holds the checkpoint.

        Raises:
            RunError: There is no such checkpoint, or it is damaged.
        """
        if self._found is None:
            self._found = self.reference.find(self._hold.stack)
        return self._found

    def pins(self, recorded: Mapping[str, Any], recorded_folder: str | None) -> dict[str, Any]:
        """Returns the step and the hash to record; empty if both are set.

        Args:
            recorded: The values `step` and `sha256` of the run that is resumed; empty for a new run.
            recorded_folder: The folder that the resumed run names; None for a new run.

        Raises:
            RunError: There is no such checkpoint, or it is damaged.
        """
        if self.reference.is_pinned:
            return {}
        found = self.reference.recorded(recorded, recorded_folder) or self.find()
        return {"step": found.step, "sha256": found.sha256}

    def adopt(self, earlier: "CheckpointSource") -> None:
        """Takes over what `pins` of the same settings has found, if it is this checkpoint."""
        found = earlier._found
        if found is not None and (found.step, found.sha256) == self.reference[1:]:
            self._found, self._hold = found, earlier._hold

    def release(self) -> None:
        """Allows the other run to remove the checkpoint, once it is read."""
        self._found = None
        self._hold.release()


def tensors_sha256(checkpoint: Path) -> str:
    """Returns a hash that identifies the tensors of a checkpoint: weights, averages and optimizer state.

    It covers name, dtype and shape of each tensor and, by the hashes in the manifest, the bytes of the files that hold
    them. It is equal for bitwise equal runs on equally many processes. It does not cover times, the configuration, or
    the step, and is cheap: no tensor is read. `damage` checks that the files are those of the manifest.

    Args:
        checkpoint: The folder of the checkpoint.

    Raises:
        OSError | ValueError | KeyError: A file is missing or not as written.
    """
    files = json.loads((checkpoint / MANIFEST).read_text("utf-8"))["files"]
    contents = sorted((name, entry["sha256"]) for name, entry in files.items() if name.endswith(_SUFFIX))
    tensors = sorted((name, str(shape)) for name, shape in tensor_shapes(checkpoint).items())
    return hashlib.sha256(json.dumps([contents, tensors]).encode()).hexdigest()


def _found(path: Path) -> FoundCheckpoint:
    return FoundCheckpoint(path, int(read_counts(path)["step"]), tensors_sha256(path))


def _sha256_or_none(checkpoint: Path) -> str | None:
    """Returns the hash of a checkpoint; None for one that is damaged or was removed since it was listed."""
    try:
        return tensors_sha256(checkpoint)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
