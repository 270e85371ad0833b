"""Exchange of the processes of a run before each step."""

from typing import NamedTuple

from ml.data import Batch
from ml.distributed import Layout
from ml.training.checkpoints.saver import Saver
from ml.training.guide import Guide


class Agreement(NamedTuple):
    """Agreement of all processes before a step.

    Attributes:
        num_targets: Targets in the loss of the step, of all processes.
        num_tokens: Tokens of the step, of all processes.
        num_units: Targets or pairs over which the loss of the step is a mean, of all processes.
        stop: Whether a process was requested to stop.
        save: Whether a process was requested to save.
    """

    num_targets: int
    num_tokens: int
    num_units: int
    stop: bool
    save: bool


def agree(
    read: list[Batch] | Exception, layout: Layout, guide: Guide | None, saver: Saver, *, stop: bool, save: bool
) -> Agreement:
    """Exchanges what the processes must know of each other before a step, without synchronizing the device.

    Args:
        read: The micro-batches of this process, or the error that prevents them.
        layout: The mesh of the processes.
        guide: The teacher or the reference of the loss; None without one.
        saver: Writes the checkpoints of this process.
        stop: Whether this process was requested to stop.
        save: Whether this process was requested to save.

    Raises:
        DataError | RunFailure: This process could not read its batches, or not write its checkpoint.
        OtherProcessFailed: Another one could not.
    """
    batches = read if isinstance(read, list) else []
    own = batches if layout.reads_first else []
    counts = [sum(batch.num_targets for batch in own), sum(batch.tokens.numel() for batch in own)]
    counts.append(counts[0] if guide is None else sum(map(guide.num_units, own)))
    flags = [stop, save, isinstance(read, Exception), saver.has_failed]
    num_targets, num_tokens, num_units, stops, saves, unread, unsaved = layout.world.host_sum(
        [*counts, *map(int, flags)]
    )
    if unread:
        layout.world.require_none(read if isinstance(read, Exception) else None)
    if unsaved:
        saver.wait()
    return Agreement(num_targets, num_tokens, num_units, stops > 0, saves > 0)
