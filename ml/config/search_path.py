"""Where configuration files are found, and what they are called in messages and provenance."""

import difflib
from dataclasses import dataclass, field
from pathlib import Path

from ml.config.errors import did_you_mean


@dataclass
class SearchPath:
    """Where configuration files are looked for, in order, after the place of the includer."""

    folders: list[Path] = field(default_factory=list)
    shipped: Path | None = None

    def find(self, name: str, includer: Path | None = None) -> Path | None:
        """The first file of that name.

        A file that a user names is found as given, in the folders, among the shipped ones; what a user's file includes,
        beside that first. A shipped file includes shipped ones, whatever lies in the working folder.
        """
        return next((folder / name for folder in self._places(includer) if (folder / name).is_file()), None)

    def _places(self, includer: Path | None) -> list[Path]:
        beside = [includer.parent] if includer else []
        shipped = [self.shipped] if self.shipped else []
        if includer and self.is_shipped(includer):
            return [*beside, *shipped]
        return [*beside, Path(), *self.folders, *shipped]

    def is_shipped(self, path: Path) -> bool:
        """Whether a file comes with the program."""
        return self.shipped is not None and path.resolve().is_relative_to(self.shipped.resolve())

    def suggest(self, name: str, includer: Path | None = None) -> str:
        """`; did you mean ...?` among the .gin files of the same places."""
        known = [
            found.relative_to(folder).as_posix()
            for folder in self._places(includer)
            if folder.is_dir()
            for pattern in ("*.gin", "*/*.gin")
            for found in sorted(folder.glob(pattern))
        ]
        by_stem = difflib.get_close_matches(Path(name).name, [Path(k).name for k in known], n=1)
        nearest = [k for k in known if by_stem and Path(k).name == by_stem[0]]
        return f"; did you mean {nearest[0]!r}?" if nearest else did_you_mean(name, known)

    def display(self, path: Path) -> str:
        """A file's name for messages and provenance: the same on every machine where that is possible."""
        resolved = path.resolve()
        if self.shipped is not None and self.is_shipped(path):
            return f"configs/{resolved.relative_to(self.shipped.resolve()).as_posix()}"
        if not resolved.is_relative_to(Path().resolve()):
            return path.as_posix()
        here = resolved.relative_to(Path().resolve()).as_posix()
        return f"./{here}" if here.startswith("configs/") else here  # `configs/` alone is what comes with the program
