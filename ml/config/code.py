"""Search places for the code that configurations import, and the check that it is the code of the saved run.

A run keeps a copy of its custom code in the folder `code`, and the SHA-256 of each file in its operative config.
Nothing in the folder of a run is executed unless it is trusted.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ml.config.components import Component
from ml.config.errors import Location, Problem, did_you_mean
from ml.config.search_path import SearchPath

CODE_FOLDER = "code"
_OPERATIVE = "operative_config.gin"
_TRUST = "--trust_run_code (in Python trust_code=True)"


@dataclass(frozen=True, slots=True)
class Places:
    """Folders that are searched for the module of an import statement before Python's own path.

    Attributes:
        folders: The folders, in order.
        forbidden: The folder of the run that contains the statement, where nothing may be executed; None outside runs.
        copy: The copy of the code in the folder of the run; None if there is none or it is trusted.
    """

    folders: list[Path]
    forbidden: Path | None = None
    copy: Path | None = None

    def not_found(self, name: str) -> str:
        """Returns the error message for a module that is in none of the folders."""
        modules = {p.stem if p.is_file() else p.name for folder in self.folders for p in _modules(folder)}
        looked = "".join(f"{folder.as_posix()}, " for folder in self.folders)
        hint = did_you_mean(name.partition(".")[0], modules) if name.partition(".")[0] not in modules else ""
        message = f"there is no module {name!r}{hint} (searched {looked}and the path of Python)"
        if self.copy:
            return f"{message}. The run keeps a copy in {self.copy}; {_TRUST} executes it"
        return message


class Code:
    """The code of one configuration.

    Args:
        search_path: The folders in which files are searched.
        trusted: Whether the copies in the folders of runs are executed.
    """

    def __init__(self, search_path: SearchPath, trusted: bool):
        self._search_path = search_path
        self._trusted = trusted
        self._expected: list[tuple[Mapping[str, str], Location, Path | None]] = []

    def places(self, including: tuple[Path, ...]) -> Places:
        """Returns the places to search for an import statement.

        Args:
            including: The files being read, outermost first; the last one contains the statement.
        """
        run = next((found for path in including if (found := _run_of(path)) is not None), None)
        usual = [Path(), *self._search_path.folders]
        if run is None:
            beside = dict.fromkeys(path.parent for path in reversed(including))
            return Places(list(dict.fromkeys([*beside, *usual])))
        copy = run / CODE_FOLDER if (run / CODE_FOLDER).is_dir() else None
        outside = [folder for folder in usual if not folder.resolve().is_relative_to(run.resolve())]
        if self._trusted and copy is not None:
            return Places([copy, *outside], run)
        return Places(outside, run, copy)

    def expect(self, hashes: Mapping[str, str], location: Location, including: tuple[Path, ...]) -> None:
        """Records the files that a run was created with.

        Args:
            hashes: The SHA-256 of each file.
            location: The place of the statement.
            including: The files being read, outermost first; the last one contains the statement.
        """
        self._expected.append((hashes, location, self.places(including).copy))

    def misfits(self, components: Iterable[Component]) -> list[Problem]:
        """Returns a problem for each file that differs from the one that a run was created with."""
        here = {component.file: component.sha256 for component in components}
        return [
            Problem(location, self._misfit(file, sha256, here[file], copy))
            for hashes, location, copy in self._expected
            for file, sha256 in hashes.items()
            if here.get(file, sha256) != sha256
        ]

    def _misfit(self, file: str, expected: str, found: str, copy: Path | None) -> str:
        if self._trusted:
            return f"{file} in the run's copy of the code has changed since the run was created: its SHA-256 is {found}"
        remedy = f"; {_TRUST} uses the copy in {copy}" if copy else ""
        return (
            f"{file} differs from the file that this run was created with (SHA-256 {found[:12]}... instead of "
            f"{expected[:12]}...){remedy}"
        )


def _run_of(path: Path) -> Path | None:
    """The folder of the run that contains a file, directly, in a checkpoint or in a segment."""
    folder = path.parent
    if not (folder / _OPERATIVE).is_file():
        return None
    is_part = folder.resolve().parent.name in ("checkpoints", "segments")
    return folder.resolve().parent.parent if is_part else folder


def _modules(folder: Path) -> list[Path]:
    return [*folder.glob("*.py"), *(p.parent for p in folder.glob("*/__init__.py"))] if folder.is_dir() else []
