"""Search path of configuration files, and their names in messages and provenance."""

import difflib
from dataclasses import dataclass, field
from pathlib import Path

from ml.config.errors import did_you_mean


@dataclass
class SearchPath:
    """Folders that are searched for configuration files, in order, after the folder of the includer.

    Attributes:
        folders: The folders given by the user; the working folder comes before them.
        shipped: The folder of the configurations that come with the program, searched last; None if there are none.
    """

    folders: list[Path] = field(default_factory=list)
    shipped: Path | None = None

    def find(self, name: str, includer: Path | None = None) -> Path | None:
        """Returns the first file of a name, or None.

        A shipped file includes shipped files only, regardless of the working folder.

        Args:
            name: The name.
            includer: The file that includes it, whose folder is searched first; None for a file that the user names.
        """
        return next((folder / name for folder in self._places(includer) if (folder / name).is_file()), None)

    def _places(self, includer: Path | None) -> list[Path]:
        beside = [includer.parent] if includer else []
        shipped = [self.shipped] if self.shipped else []
        if includer and self.is_shipped(includer):
            return [*beside, *shipped]
        return [*beside, Path(), *self.folders, *shipped]

    def is_shipped(self, path: Path) -> bool:
        """Returns whether a file comes with the program."""
        return self.shipped is not None and path.resolve().is_relative_to(self.shipped.resolve())

    def suggest(self, name: str, includer: Path | None = None) -> str:
        """Returns `; did you mean ...?` with the closest .gin file in the same places, or an empty string."""
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
        """Returns a file's name for messages and provenance, the same on every machine if possible."""
        resolved = path.resolve()
        if self.shipped is not None and self.is_shipped(path):
            return f"configs/{resolved.relative_to(self.shipped.resolve()).as_posix()}"
        if not resolved.is_relative_to(Path().resolve()):
            return path.as_posix()
        here = resolved.relative_to(Path().resolve()).as_posix()
        return f"./{here}" if here.startswith("configs/") else here  # plain `configs/` denotes the shipped files
