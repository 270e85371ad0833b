"""The changes that a run allows from a step on, and what they do to its learning rate."""

import ast
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ml.building import build_trainer
from ml.config import Config, Difference, Record
from ml.config.neutrality import is_declared_neutral
from ml.data import Mixture
from ml.training import Trainer

_LENGTH = {"num_steps", "num_epochs", "epoch_sequences"}
_TRAINER = {*_LENGTH, "batch_size", "max_grad_norm", "schedule", "early_stopping", "validation"}
_MIXTURE = {"weights", "earlier"}  # of `Trainer.data`
_PARTS = {"schedule", "early_stopping", "validation", "mesh"}  # places, with everything in them
START = "initial_weights"  # the place of what a run starts from
_OPTIMIZER = "optimizer"  # the place whose numbers may change
_REWARMED = 20  # a twentieth of the remaining steps warms up again


class Rate(NamedTuple):
    """The learning rate of a step."""

    step: int
    value: float

    def __str__(self) -> str:
        return f"step {self.step}: {self.value:.6g}"


class Change(NamedTuple):
    """Changes of a run by a configuration, after its newest checkpoint.

    Attributes:
        before: The trainer of the run so far.
        after: The trainer from the next step on.
        step: The last step of the run so far.
        sequences: The training sequences consumed so far.
        schedule_is_set: Whether the schedule is among what changes.
        fixed: Names of parameters that cannot change in a run.
        is_of_start: Whether all of these tell what the run started from.
    """

    before: Trainer
    after: Trainer
    step: int
    sequences: int
    schedule_is_set: bool
    fixed: list[str]
    is_of_start: bool

    @property
    def moved(self) -> int | None:
        """The first step taken whose learning rate the schedule would give another value now; None if it has none."""
        ours, theirs = self.before.schedule, self.after.schedule
        last = min(self.step, self.before.num_steps, self.after.num_steps)
        return next((step for step in range(1, last + 1) if ours(step) != theirs(step)), None)

    @property
    def rates(self) -> str:
        """The learning rates around the change."""
        return f"learning rate at {self._before()}; {', '.join(map(str, self._after()))}"

    def _before(self) -> Rate:
        return Rate(self.step, self.before.learning_rate(self.step))

    def _after(self) -> list[Rate]:
        first, last = self.step + 1, self.after.num_steps
        middle = (first + last) // 2
        steps = sorted({step for step in (first, middle, last) if first <= step <= last})
        return [Rate(step, self.after.learning_rate(step)) for step in steps]

    @property
    def mixture(self) -> str | None:
        """Gin text with which every part of a mixture with other weights continues; None where it continues so."""
        before, after = self.before.data, self.after.data
        if not isinstance(before, Mixture) or not isinstance(after, Mixture):
            return None
        earlier = [*before.earlier, (self.sequences, before.weights)]
        is_unchanged = (after.weights, after.earlier) == (before.weights, before.earlier)
        return None if is_unchanged or after.earlier == earlier else f"Mixture.earlier = {earlier!r}"

    def phases(self) -> tuple[str, str]:
        """Returns gin text of two schedules that begin where the learning rate is: one holds it, one warms up again."""
        factor, left = self.before.schedule(self.step), self.after.num_steps - self.step
        done = [f"done/WarmupPhase.{name} = {value!r}" for name, value in (("start", factor), ("end", factor))]
        done += [f"done/WarmupPhase.num_steps = {self.step}", "Trainer.schedule = @PhasedSchedule"]
        hold = [*done, "PhasedSchedule.phases = {'done': @WarmupPhase, 'hold': @ConstantPhase}"]
        warmup = max(1, left // _REWARMED)
        rewarm = [
            *done,
            "PhasedSchedule.phases = {'done': @WarmupPhase, 'rewarm': @WarmupPhase, 'decay': @CosinePhase}",
            f"rewarm/WarmupPhase.start = {factor!r}",
            f"rewarm/WarmupPhase.num_steps = {warmup}",
        ]
        return "\n".join(hold), "\n".join(rewarm)


def obstacle(change: Change, add: str, otherwise: str) -> str | None:
    """Returns why training cannot continue with a change, and what to type instead; None if it can.

    Args:
        change: The change.
        add: The flags with which gin text is added, such as "{gin_bindings}".
        otherwise: The way of a change that no run allows.
    """
    if change.is_of_start:
        return (
            f"{', '.join(change.fixed)} cannot change in a run that has started. Name what it started from, by the "
            "same {init_from} and the flags that go with it, or another {run_dir}"
        )
    if change.fixed:
        return f"{', '.join(change.fixed)} cannot change in a run. {otherwise}"
    if change.after.num_steps < change.step:
        return f"{change.step} steps have been taken: Trainer.num_steps must be at least that"
    length = change.after.length
    if length.num_epochs is not None and change.sequences != change.step * change.after.batch_size:
        num_steps = length.steps_after(change.step, change.sequences, change.after.batch_size)
        return (
            f"the {change.step} steps so far took {change.sequences} sequences, and Trainer.num_epochs counts steps of "
            f"one batch size: for {length.num_epochs:g} epochs in all, set Trainer.num_epochs = None and "
            f"Trainer.num_steps = {num_steps}"
        )
    if change.mixture is not None:
        return (
            "with other weights alone, parts of the mixture would repeat and skip sequences. To continue each part "
            f"where it is, add {add} with\n\n{change.mixture}\n"
        )
    if not change.schedule_is_set and change.moved is not None:
        hold, rewarm = change.phases()
        return (
            f"with {change.after.num_steps} steps the schedule is another one from step {change.moved} on: "
            f"{change.rates}. Set a schedule that begins where this one is after step {change.step}. To hold the "
            f"learning rate, add {add} with\n\n{hold}\n\nor, to warm up and decay again,\n\n{rewarm}\n"
        )
    return None


def change_of(saved: Config, config: Config, difference: Difference, counts: Mapping[str, Any]) -> Change:
    """Returns what a configuration changes in a run.

    Args:
        saved: The configuration of the run so far.
        config: The configuration from the next step on.
        difference: Its difference from the saved one.
        counts: The values of the newest checkpoint that are not tensors.
    """
    names = list(dict.fromkeys(one.name for one in [*difference.removed, *difference.added]))
    found: dict[str, list[tuple[Record | None, Record | None]]] = {name: [] for name in names}
    for before, after in _changed(saved.records(), config.records()):
        one = after or before
        assert one is not None  # otherwise nothing differs
        name = f"{one.configurable}.{one.parameter}"
        if name in found:
            found[name].append((before, after))
    fixed = [name for name, pairs in found.items() if not pairs or not all(_may_change(*pair) for pair in pairs)]
    places = [one.path for pairs in found.values() for pair in pairs for one in pair if one is not None]
    is_set = "Trainer.schedule" in names or any(place.split("/")[0] == "schedule" for place in places)
    of_start = [name for name in fixed if found[name] and all(map(_is_of_start, found[name]))]
    trainers = (build_trainer(saved), build_trainer(config))
    return Change(*trainers, counts["step"], counts["sequences"], is_set, fixed, bool(fixed) and of_start == fixed)


def _is_of_start(pair: tuple[Record | None, Record | None]) -> bool:
    one = pair[1] or pair[0]
    assert one is not None  # otherwise nothing differs
    return one.path.split("/")[0] == START or (one.configurable, one.parameter) == ("Trainer", START)


def _changed(ours: Iterable[Record], theirs: Iterable[Record]) -> list[tuple[Record | None, Record | None]]:
    before, after = ({(r.path, r.configurable, r.parameter): r for r in found} for found in (ours, theirs))
    pairs = [(before.get(key), after.get(key)) for key in dict.fromkeys([*before, *after])]
    return [(a, b) for a, b in pairs if a is None or b is None or a.value != b.value]


def _may_change(before: Record | None, after: Record | None) -> bool:
    one = after or before
    assert one is not None  # otherwise nothing differs
    if is_declared_neutral(one.configurable, one.parameter):
        return True  # it does not hold here, as that of the mesh with dropout: only draws and rounding change
    if one.configurable == "Trainer":
        return one.parameter in _TRAINER
    if one.path == "data" and one.configurable == "Mixture":
        return one.parameter in _MIXTURE
    if one.path == _OPTIMIZER:
        return all(record is not None and _is_number(record.value) for record in (before, after))
    return one.path.split("/")[0] in _PARTS


def _is_number(text: str) -> bool:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return False
    parts = value if isinstance(value, tuple) else (value,)
    return all(type(part) in (int, float) for part in parts)
