"""The decision how a start goes on with the run that a folder holds."""

from typing import NamedTuple

from ml.config import Config, compare, neutral_changes
from ml.errors import ArgumentError
from ml.training import RunFolder
from ml.training.errors import RunError

_MOST_DIFFERENCES = 20


class Continuation(NamedTuple):
    """What a start does in a folder.

    Attributes:
        saved: The operative config there; None in a folder without a run.
        changed: The values that it changes, as `- line` and `+ line` of the operative config.
    """

    saved: str | None
    changed: tuple[str, ...] = ()

    @property
    def notice(self) -> str:
        """Lines that report the change; empty without one."""
        if not self.changed:
            return ""
        return f"changed for this start, without effect on the result (- before, + now):\n{shown(self.changed)}"

    def require_unchanged(self, folder: RunFolder) -> None:
        """Requires that no other process has started another run in the folder since the decision.

        Raises:
            RunError: One has.
        """
        if (folder.operative_config() if folder.is_begun else None) != self.saved:
            raise RunError(f"another process has just changed the run in {folder.path}: start again")


def continuation(config: Config, folder: RunFolder) -> Continuation:
    """Decides how a start with a configuration goes on with what a folder holds.

    Args:
        config: The configuration.
        folder: The folder; one with only a dry run in it counts as empty.

    Raises:
        UserError: It holds a run with other results.
    """
    saved = folder.operative_config() if folder.is_begun else None
    if saved is None:
        return Continuation(None)
    if difference := compare(saved, config.operative):
        raise ArgumentError(
            "%s holds a run of another configuration. Name another {run_dir}, or load the configuration that is there, "
            "%s/operative_config.gin. It differs (- there, + here) in\n%s",
            folder.path,
            folder.path,
            shown(difference.lines),
        )
    return Continuation(saved, tuple(neutral_changes(saved, config.operative).lines))


def shown(lines: list[str] | tuple[str, ...]) -> str:
    """Returns lines indented, the first ones of many."""
    more = [f"  and {len(lines) - _MOST_DIFFERENCES} more"] if len(lines) > _MOST_DIFFERENCES else []
    return "\n".join([*(f"  {line}" for line in lines[:_MOST_DIFFERENCES]), *more])
