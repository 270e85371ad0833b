"""Rules of a branch: a run that continues the training of another one in a new folder.

Its configuration may differ from that of the other run as that of an extended run may.
"""

from collections.abc import Iterable
from typing import NamedTuple

from ml.building import load
from ml.config import Config, Difference, Record, compare
from ml.errors import ArgumentError
from ml.runs.changes import START, change_of, obstacle
from ml.runs.continuation import shown
from ml.training.checkpoints.reference import FoundCheckpoint
from ml.training.checkpoints.state_files import OPERATIVE_CONFIG, read_whole_counts


class Branch(NamedTuple):
    """The start of a branch.

    Attributes:
        step: The last step of the other run.
        changed: Values that change the result and differ from those of the other run, as `- line` and `+ line`.
        rates: The learning rates around the step; empty if nothing differs.
    """

    step: int
    changed: tuple[str, ...] = ()
    rates: str = ""

    @property
    def notice(self) -> str:
        """Lines that report the changes; empty without one."""
        if not self.changed:
            return ""
        first = f"changed after step {self.step} of the other run (- there, + here from now on):"
        return "\n".join([first, shown(self.changed), self.rates])


def branch_of(config: Config, checkpoint: FoundCheckpoint, *, trust_code: bool = False) -> Branch:
    """Decides whether training may continue from a checkpoint of another run.

    Args:
        config: The configuration of the branch.
        checkpoint: The checkpoint.
        trust_code: Executes the copy of custom modules in the folder of the other run, where values differ.

    Raises:
        UserError: A value differs that cannot change in a run, or the checkpoint has no configuration.
    """
    file = checkpoint.path / OPERATIVE_CONFIG
    if not file.is_file():
        raise ArgumentError("{init_state}=all needs the configuration of %s, which has no %s", checkpoint, file.name)
    found = compare(file.read_text("utf-8"), config.operative)
    if not (difference := _without_start(found, config.records())):
        return Branch(checkpoint.step)
    saved = load(file, trust_code=trust_code)
    if not (difference := _without_start(difference, saved.records())):
        return Branch(checkpoint.step)
    change = change_of(saved, config, difference, read_whole_counts(checkpoint.path))
    weights_alone = (
        "Take the weights alone: the same command with {init_state}=weights, and {init_may_differ} for weights of "
        "other shapes"
    )
    if problem := obstacle(change, "{gin_bindings}", weights_alone):
        raise ArgumentError(
            "training cannot continue from %s with another configuration. It differs (- there, + here) in\n%s\n"
            + problem.replace("%", "%%"),
            checkpoint,
            shown(difference.lines),
        )
    return Branch(checkpoint.step, tuple(difference.lines), change.rates)


def _without_start(difference: Difference, records: Iterable[Record]) -> Difference:
    """Returns a difference without what a run starts from."""
    parts = {f"{one.configurable}.{one.parameter}" for one in records if one.path.split("/")[0] == START}
    names = {f"Trainer.{START}"} | parts
    kept = ([one for one in found if one.name not in names] for found in difference)
    return Difference(*kept)
