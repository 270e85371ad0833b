"""Decision between a new run, a resumed run, an extended run and a refusal."""

from typing import NamedTuple

from ml.building import load
from ml.config import Config, Difference, compare, neutral_changes
from ml.errors import ArgumentError
from ml.run_files import segment_folders
from ml.runs.changes import Change, change_of, obstacle
from ml.runs.segments import current_segment
from ml.training import RunFolder
from ml.training.checkpoints.policy import newest_counts
from ml.training.errors import RunError

_MOST_DIFFERENCES = 20


class Continuation(NamedTuple):
    """Decision on a start in a folder.

    Attributes:
        saved: The operative config there; None in a folder without a run.
        neutral: Values that change no result and that it changes, as `- line` and `+ line` of the operative config.
        changed: Values that it changes from the next step on.
        segment: The step after which its configuration is in force; 0 for the first segment.
        rates: The learning rates around a change; empty without one.
    """

    saved: str | None
    neutral: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    segment: int = 0
    rates: str = ""

    @property
    def is_extension(self) -> bool:
        """True where a new segment begins."""
        return bool(self.changed)

    @property
    def notice(self) -> str:
        """Lines that report the changes; empty without one."""
        lines = []
        if self.changed:
            lines += [f"changed after step {self.segment} (- before, + from now on):", shown(self.changed), self.rates]
        if self.neutral:
            lines += ["changed for this start, without effect on the result (- before, + now):", shown(self.neutral)]
        return "\n".join(filter(None, lines))

    def require_unchanged(self, folder: RunFolder, step: int) -> None:
        """Requires that no other process has started or trained the run since the decision.

        Args:
            folder: The run.
            step: The last step of the run.

        Raises:
            RunError: One has.
        """
        saved = folder.operative_config() if folder.is_begun else None
        if saved != self.saved or (self.is_extension and step != self.segment):
            raise RunError(f"another process has just changed the run in {folder.path}: start again")


def continuation(config: Config, folder: RunFolder, *, extend: bool = False, trust_code: bool = False) -> Continuation:
    """Decides whether a start with a configuration resumes or extends the run in a folder, or begins one.

    Args:
        config: The configuration.
        folder: The folder; one with only a dry run in it counts as empty.
        extend: Whether values that change the result may differ, from the next step on.
        trust_code: Executes the copy of custom modules in the run folder, where values differ.

    Raises:
        UserError: It holds a run with other results, or one that cannot change so.
    """
    saved = folder.operative_config() if folder.is_begun else None
    if saved is None:
        if extend:
            raise ArgumentError("{extend} goes with a {run_dir} that holds a run; there is none in %s", folder.path)
        return Continuation(None)
    neutral = tuple(neutral_changes(saved, config.operative).lines)
    difference = compare(saved, config.operative)
    if not difference:
        return _resumed(saved, neutral, folder, config, extend)
    counts = newest_counts(folder.checkpoints)
    step = counts.get("step", 0)
    lines = tuple(difference.lines)
    if step == 0:
        if not extend:
            raise _refused(folder, difference, "add {extend} to begin again with this configuration")
        return Continuation(saved, neutral, lines)
    change = change_of(load(folder.operative, trust_code=trust_code), config, difference, counts)
    if problem := _problem(change, folder):
        raise _refused(folder, difference, problem)
    if not extend:
        branch = f"{{init_from}}={folder.path} {{init_step}}={step} {{init_state}}=all and another {{run_dir}}"
        advice = f"add {{extend}} to change it after step {step}, or {branch} for a branch; {change.rates}"
        raise _refused(folder, difference, advice)
    return Continuation(saved, neutral, lines, step, change.rates)


def _resumed(saved: str, neutral: tuple[str, ...], folder: RunFolder, config: Config, extend: bool) -> Continuation:
    """The continuation of the newest segment, which must have begun before the newest checkpoint."""
    segment = current_segment(folder)
    if segment and (step := newest_step(folder)) < segment:
        if not extend:
            raise ArgumentError(
                "the newest segment of %s begins after step %s, and its newest valid checkpoint is of step %s: add "
                "{extend} to begin the segment there, or restore the checkpoint",
                folder.path,
                segment,
                step,
            )
        earlier = max(start for start in segment_folders(folder.path) if start <= step)
        before = RunFolder(segment_folders(folder.path)[earlier]).operative_config() or ""
        return Continuation(saved, neutral, tuple(compare(before, config.operative).lines), step)
    return Continuation(saved, neutral, segment=segment)


def newest_step(folder: RunFolder) -> int:
    """Returns the step of the newest valid checkpoint of a run; 0 without one."""
    return newest_counts(folder.checkpoints).get("step", 0)


def _problem(change: Change, folder: RunFolder) -> str | None:
    """Returns why a run cannot change so, and what to type instead; None if it can."""
    other = (
        f"Start another one from its weights: the same command with {{init_from}}={folder.path} "
        f"{{init_step}}={change.step} and another {{run_dir}}, and {{init_may_differ}} for weights of other shapes"
    )
    return obstacle(change, "{extend} and {gin_bindings}", other)


def _refused(folder: RunFolder, difference: Difference, advice: str) -> ArgumentError:
    return ArgumentError(
        "%s holds a run of another configuration. Name another {run_dir}, or load the configuration that is there, "
        "%s/operative_config.gin. It differs (- there, + here) in\n%s\n" + advice.replace("%", "%%"),
        folder.path,
        folder.path,
        shown(difference.lines),
    )


def shown(lines: list[str] | tuple[str, ...]) -> str:
    """Returns lines indented, the first ones of many."""
    more = [f"  and {len(lines) - _MOST_DIFFERENCES} more"] if len(lines) > _MOST_DIFFERENCES else []
    return "\n".join([*(f"  {line}" for line in lines[:_MOST_DIFFERENCES]), *more])
