"""Code that configurations import: where it is looked for, and whether it is what a run was made with.

A run keeps a copy of its own code in the folder `code`, and the SHA-256 of each file in its operative config.
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
    """Where a module that one statement names is looked for before Python's own path.

    Attributes:
        folders: in order.
        forbidden: the folder of the run that the statement comes from, where nothing may be executed.
        copy: the copy of its code that the run keeps, where there is one and it is not trusted.
    """

    folders: list[Path]
    forbidden: Path | None = None
    copy: Path | None = None

    def not_found(self, name: str) -> str:
        """The message for a module that is in none of them."""
        modules = {p.stem if p.is_file() else p.name for folder in self.folders for p in _modules(folder)}
        looked = "".join(f"{folder.as_posix()}, " for folder in self.folders)
        hint = did_you_mean(name.partition(".")[0], modules) if name.partition(".")[0] not in modules else ""
        message = f"there is no module {name!r}{hint} (looked for in {looked}and where Python looks)"
        return f"{message}. The run keeps a copy in {self.copy}, which {_TRUST} executes" if self.copy else message


class Code:
    """The code of one configuration.

    Args:
        search_path: where files are looked for.
        trusted: whether the copies in the folders of runs are executed.
    """

    def __init__(self, search_path: SearchPath, trusted: bool):
        self._search_path = search_path
        self._trusted = trusted
        self._expected: list[tuple[Mapping[str, str], Location, Path | None]] = []

    def places(self, including: tuple[Path, ...]) -> Places:
        """The places for an import statement in the last of the files that are being read, outermost first."""
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
        """Notes the files that a run was made with."""
        self._expected.append((hashes, location, self.places(including).copy))

    def misfits(self, components: Iterable[Component]) -> list[Problem]:
        """The files that are not what a run was made with."""
        here = {component.file: component.sha256 for component in components}
        return [
            Problem(location, self._misfit(file, sha256, here[file], copy))
            for hashes, location, copy in self._expected
            for file, sha256 in hashes.items()
            if here.get(file, sha256) != sha256
        ]

    def _misfit(self, file: str, expected: str, found: str, copy: Path | None) -> str:
        if self._trusted:
            return f"{file} in the copy of the run's code is not what the run was made with: its SHA-256 is {found}"
        remedy = f"; {_TRUST} takes the copy in {copy}" if copy else ""
        return (
            f"{file} is not the file that this run was made with (SHA-256 {expected[:12]}... there, {found[:12]}... "
            f"here){remedy}"
        )


def _run_of(path: Path) -> Path | None:
    """The folder of the run that a file lies in, directly or in one of its checkpoints."""
    folder = path.parent
    if not (folder / _OPERATIVE).is_file():
        return None
    is_checkpoint = folder.resolve().parent.name == "checkpoints"
    return folder.resolve().parent.parent if is_checkpoint else folder


def _modules(folder: Path) -> list[Path]:
    return [*folder.glob("*.py"), *(p.parent for p in folder.glob("*/__init__.py"))] if folder.is_dir() else []
