"""Operative configs of earlier releases in the terms of this one.

An operative config lists every parameter of every configurable that it builds. One that it does not list was added
later: it has its default, which has to keep the behavior of earlier releases. Where it does not, and where a name has
changed, `CHANGES` has an entry, in the order of the releases.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ml.config.operative_lines import LAYER_LINE, NEUTRAL_SUFFIX
from ml.config.values import LEFT_OUT

_LEFT_OUT = f"%{LEFT_OUT.name}"
_KEY = re.compile(
    r"(?P<scope>(?:[^\s/=]+/)*)(?P<name>[\w.]+)\.(?P<parameter>\w+) = (?P<value>.*?)"
    + f"(?:{re.escape(NEUTRAL_SUFFIX)})?"
)


class Renamed(NamedTuple):
    """A configurable, `Name`, or a parameter, `Name.parameter`, that has another name now."""

    old: str
    new: str

    def apply(self, lines: list[str]) -> Iterator[tuple[int, str]]:
        old, new = re.escape(self.old), self.new
        if "." in self.old:
            _substitute(lines, rf"^((?:[^\s/=]+/)*){old} = ", rf"\g<1>{new} = ")
        else:
            _substitute(lines, rf"^((?:[^\s/=]+/)*){old}\.(?=\w+ = )", rf"\g<1>{new}.")
            _substitute(lines, rf"(@(?:[\w.]+/)*){old}\b", rf"\g<1>{new}")
            _substitute(lines, rf"^{old}/", f"{new}/")  # the parent of a suggestion
        return iter(())


class Removed(NamedTuple):
    """A parameter, `Name.parameter`, of which one value is the only behavior now.

    Attributes:
        key: The parameter.
        value: That value, as gin text.
        remedy: What a run with another value has to do.
    """

    key: str
    value: str
    remedy: str

    def apply(self, lines: list[str]) -> Iterator[tuple[int, str]]:
        for index, line in enumerate(lines):
            found = _KEY.fullmatch(line)
            if found and f"{found['name']}.{found['parameter']}" == self.key:
                lines[index] = ""
                if found["value"] not in (self.value, _LEFT_OUT):
                    yield index + 1, f"{self.key} was removed, and only {self.value} is possible now: {self.remedy}"


class Added(NamedTuple):
    """A parameter, `Name.parameter`, whose default is not the behavior of earlier releases.

    Attributes:
        key: The parameter.
        value: The value that is, as gin text.
    """

    key: str
    value: str

    def apply(self, lines: list[str]) -> Iterator[tuple[int, str]]:
        if self.is_missing(mentioned(lines)):
            lines += [f"{LAYER_LINE}'default'", f"{self.key} = {self.value}"]
        return iter(())

    def is_missing(self, keys: set[str]) -> bool:
        """Returns True if an operative config with these parameters has the configurable without the parameter."""
        name, _, _ = self.key.rpartition(".")
        return self.key not in keys and any(key.rpartition(".")[0] == name for key in keys)


class NewDefault(NamedTuple):
    """A parameter, `Name.parameter`, that has another default now; saved configs list the earlier one.

    Attributes:
        key: The parameter.
        value: The earlier default, as gin text.
    """

    key: str
    value: str

    def apply(self, lines: list[str]) -> Iterator[tuple[int, str]]:
        return iter(())


CHANGES: tuple[Renamed | Removed | Added | NewDefault, ...] = (
    Added("TextData.begin_token", "''"),
    Added("TokenFiles.begin_token", "''"),
    Added("ChatData.begin_token", "''"),
    Added("RoleMarkers.separate_turns", "False"),
    Added("SentencePieceTokenizer.symbols_in_text", "True"),
    NewDefault("TextData.tokenizer", "@ByteTokenizer"),
    NewDefault("ChatData.tokenizer", "@ByteTokenizer"),
    NewDefault("ImageTextData.tokenizer", "@ByteTokenizer"),
)


class Migrated(NamedTuple):
    """An operative config in the terms of this release.

    Attributes:
        text: The text; every line that was there keeps its number.
        problems: What cannot be migrated: the number of the line, and the reason.
    """

    text: str
    problems: list[tuple[int, str]]


def migrated(operative: str) -> Migrated:
    """Returns an operative config of any release in the terms of this one."""
    lines = operative.split("\n")
    problems = [problem for change in CHANGES for problem in change.apply(lines)]
    return Migrated("\n".join(lines), problems)


def earlier_defaults(operative: str) -> dict[str, str]:
    """Returns the parameters whose default acts otherwise since an operative config was written.

    Args:
        operative: The operative config of any release.

    Returns:
        The value that keeps the behavior, as gin text, by `Name.parameter`.
    """
    keys, values = mentioned(operative.split("\n")), _without_scope(operative)
    found = {change.key: change.value for change in CHANGES if isinstance(change, Added) and change.is_missing(keys)}
    changed = [change for change in CHANGES if isinstance(change, NewDefault)]
    return found | {change.key: change.value for change in changed if (change.key, change.value) in values}


def _without_scope(operative: str) -> set[tuple[str, str]]:
    """Returns the parameters that an operative config has without a scope, with their values."""
    found = [_KEY.fullmatch(line) for line in operative.split("\n")]
    return {
        (f"{match['name']}.{match['parameter']}", match["value"]) for match in found if match and not match["scope"]
    }


def without_additions(operative: str, saved: str) -> str:
    """Returns an operative config without the defaults of parameters that a saved one does not list at all.

    Args:
        operative: The operative config of this release.
        saved: That of an earlier one, from `migrated`.
    """
    known, kept, is_default = mentioned(saved.split("\n")), [], False
    for line in operative.split("\n"):
        if line.startswith(LAYER_LINE):
            is_default = line == f"{LAYER_LINE}'default'"
        if not is_default or (key := _key(line)) is None or key in known:
            kept.append(line)
    return "\n".join(kept)


def mentioned(lines: Iterable[str]) -> set[str]:
    """Returns the parameters, `Name.parameter`, that the lines of an operative config list under any scope."""
    return {key for key in map(_key, lines) if key is not None}


def _key(line: str) -> str | None:
    found = _KEY.fullmatch(line)
    return f"{found['name']}.{found['parameter']}" if found and not line.startswith(LAYER_LINE) else None


def _substitute(lines: list[str], pattern: str, replacement: str) -> None:
    lines[:] = [re.sub(pattern, replacement, line) for line in lines]
