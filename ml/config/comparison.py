"""Comparison of operative configs: the fingerprint of one, and the values that differ between two."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

from ml.config.migrations import migrated, without_additions
from ml.config.neutrality import is_neutral
from ml.config.operative_lines import HEADER, LEFT_OUT_SUFFIX, NEUTRAL_SUFFIX, is_heading
from ml.config.scopes import parse_range


class Statement(NamedTuple):
    """A line of an operative config.

    Attributes:
        text: The line, without the mark of a neutral value.
        key: The scopes, the configurable and the parameter.
        neutral: Whether the value changes no result of the run.
    """

    text: str
    key: str
    neutral: bool

    @property
    def name(self) -> str:
        """The configurable and the parameter, "Linear.bias"."""
        return self.key.rpartition("/")[2]


class Difference(NamedTuple):
    """Values with effect that differ between two operative configs.

    Attributes:
        removed: Statements of the first alone.
        added: Statements of the second alone.
    """

    removed: list[Statement]
    added: list[Statement]

    def __bool__(self) -> bool:
        return bool(self.removed or self.added)

    @property
    def lines(self) -> list[str]:
        """The statements, `-` for those of the first and `+` for those of the second."""
        return [f"- {one.text}" for one in self.removed] + [f"+ {one.text}" for one in self.added]


def fingerprint(operative: str) -> str:
    """Returns the SHA-256 of an operative config, equal for equal runs.

    Options without effect, and options that change no result of a run, are omitted.
    """
    text = "\n\n".join(_sections_with_effect(operative)) + "\n"
    return hashlib.sha256(text.encode()).hexdigest()


def _sections_with_effect(operative: str) -> Iterator[str]:
    for section in operative.removesuffix("\n").split("\n\n"):
        lines = [line for line in section.splitlines() if is_heading(line) or not _is_without_effect(line)]
        if any(not is_heading(line) for line in lines) or section.startswith(HEADER.rstrip()):
            yield "\n".join(lines)


def _is_without_effect(line: str) -> bool:
    return line.endswith(LEFT_OUT_SUFFIX) or _statement(line).neutral


def statements(operative: str) -> list[Statement]:
    """Returns the statements of an operative config that have an effect, in order."""
    lines = [line for line in operative.splitlines() if not is_heading(line) and not line.endswith(LEFT_OUT_SUFFIX)]
    return [_statement(line) for line in lines]


def _statement(line: str) -> Statement:
    text = line.removesuffix(NEUTRAL_SUFFIX)
    key, _, _ = text.partition(" = ")
    return Statement(text, key, text != line or is_neutral(key.rpartition("/")[2]))


def compare(ours: str, theirs: str) -> Difference:
    """Returns the values that change results and differ between two operative configs.

    A value set explicitly is equal to the same value as a default. Ours may be of an earlier release.
    """
    mine, other = _with_neutrality(ours, theirs, False)
    return _only_in_one(mine, other) or _other_order(mine, other)


def neutral_changes(ours: str, theirs: str) -> Difference:
    """Returns the values that change no result and differ between two operative configs."""
    return _only_in_one(*_with_neutrality(ours, theirs, True))


def _with_neutrality(ours: str, theirs: str, neutral: bool) -> tuple[list[Statement], list[Statement]]:
    """Returns the statements that are neutral, in one of two operative configs, or those that are not."""
    ours = migrated(ours).text
    both = statements(ours), statements(without_additions(theirs, ours))
    keys = {one.key for found in both for one in found if one.neutral}
    mine, other = ([one for one in found if (one.key in keys) is neutral] for found in both)
    return mine, other


def _only_in_one(mine: list[Statement], other: list[Statement]) -> Difference:
    ours, theirs = {one.text: one for one in mine}, {one.text: one for one in other}
    return Difference(
        [one for text, one in ours.items() if text not in theirs],
        [one for text, one in theirs.items() if text not in ours],
    )


def _other_order(mine: list[Statement], other: list[Statement]) -> Difference:
    """Returns the statements for ranges of blocks if their order differs: of two that overlap the later one wins."""
    ours, theirs = ([one for one in found if _has_range(one.key)] for found in (mine, other))
    in_order = [one.text for one in ours] == [one.text for one in theirs]
    return Difference([], []) if in_order else Difference(ours, theirs)


def _has_range(key: str) -> bool:
    return any(parse_range(scope) for scope in key.split("/")[:-1])


def difference(ours: str, theirs: str) -> list[str]:
    """Returns the lines with effect that differ between two operative configs, `-` for ours and `+` for theirs."""
    return compare(ours, theirs).lines
