"""Sweep file: the options common to all runs, and the choices that define each run.

gin_file = "base.gin"                                  # as the flags of train.py, and as often
gin_bindings = ["Trainer.num_steps = 200"]

[grid]                                                 # every combination
"AdamW.learning_rate" = [1e-3, 3e-3]

[[list]]                                               # one after another; with a grid, each with all of it
name = "wide"
gin_bindings = ["LanguageModel.hidden_size = 512"]
"""

import itertools
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml.config.errors import did_you_mean
from ml.errors import UserError
from ml.plots.labels import short_keys
from ml.sweeps.gin_text import gin_text
from ml.sweeps.names import names_of

_SHARED_KEYS = ("gin_file", "gin_bindings", "gin_search_path", "init_from", "allow_unused_bindings")
_ENTRY_KEYS = ("name", "gin_file", "gin_bindings")


@dataclass(frozen=True)
class Binding:
    """A gin statement and its place in the file."""

    text: str
    place: str

    @property
    def key_and_value(self) -> tuple[str, str]:
        """The two sides; the second is empty if the text is not a binding, and gin reports the error."""
        key, _, value = self.text.partition("=")
        return key.strip(), value.strip()


@dataclass(frozen=True)
class Member:
    """One run of a sweep.

    Attributes:
        name: The name of its folder.
        gin_files: The gin files, in order; later ones override earlier ones.
        bindings: The bindings that follow the files, in order.
        choices: The values that distinguish it from the others, by column of the table.
    """

    name: str
    gin_files: tuple[str, ...]
    bindings: tuple[Binding, ...]
    choices: Mapping[str, str]


@dataclass(frozen=True)
class Sweep:
    """Content of a sweep file. The last three attributes apply to all members, like the flags of train.py."""

    path: Path
    members: tuple[Member, ...]
    gin_search_path: tuple[str, ...] = ()
    init_from: str | None = None
    allow_unused_bindings: bool = False


@dataclass(frozen=True)
class _Choice:
    """An entry of the list, or a point of the grid."""

    name: str | None
    gin_files: tuple[str, ...]
    bindings: tuple[Binding, ...]


def read_sweep(path: Path) -> Sweep:
    """Reads a sweep file. Gin files in its folder are found too.

    Raises:
        UserError: The file does not exist or has an error; the message names the place.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no sweep file {path}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    try:
        return _sweep(path, content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _sweep(path: Path, content: dict[str, Any]) -> Sweep:
    _require_known(content, (*_SHARED_KEYS, "grid", "list"), "")
    if not isinstance(content.get("allow_unused_bindings", False), bool):
        raise UserError("allow_unused_bindings must be true or false")
    if not isinstance(content.get("init_from", ""), str):
        raise UserError("init_from must be the folder of a run")
    files = _files(content, path, "")
    bindings = _bindings(content, "gin_bindings")
    entries, points = list(_entries(content.get("list"), path)), list(_points(content.get("grid")))
    if entries == points == []:
        raise UserError("there is nothing to sweep over: it has neither a [grid] nor a [[list]]")
    if not any([files, bindings, *(entry.gin_files or entry.bindings for entry in entries)]):
        raise UserError("there is no configuration to vary: name one with gin_file")
    pairs = list(itertools.product(entries or [_Choice(None, (), ())], points or [_Choice(None, (), ())]))
    return Sweep(
        path,
        _members(files, bindings, pairs),
        tuple(_strings(content, "gin_search_path", "")),
        content.get("init_from"),
        content.get("allow_unused_bindings", False),
    )


def _members(
    files: tuple[str, ...], bindings: tuple[Binding, ...], pairs: list[tuple[_Choice, _Choice]]
) -> tuple[Member, ...]:
    keys = [b.key_and_value[0] for entry, point in pairs for b in (*entry.bindings, *point.bindings)]
    short = short_keys(dict.fromkeys(["name", "gin_file", *keys]))

    def chosen(choice: _Choice) -> dict[str, str]:
        sides = [binding.key_and_value for binding in choice.bindings]
        named = {"name": choice.name} if choice.name is not None else {}
        files = {"gin_file": " ".join(choice.gin_files)} if choice.gin_files else {}
        return {**named, **files, **{short[key]: value for key, value in sides}}

    def parts(choice: _Choice) -> list[str]:
        if choice.name is not None:
            return [choice.name]
        values = [f"{key}={value}" for key, value in chosen(choice).items() if key != "gin_file"]
        return [*(Path(file).stem for file in choice.gin_files), *values]

    names = names_of([[*parts(entry), *parts(point)] for entry, point in pairs])
    return tuple(
        Member(
            name,
            (*files, *entry.gin_files),
            (*bindings, *entry.bindings, *point.bindings),
            {**chosen(entry), **chosen(point)},
        )
        for name, (entry, point) in zip(names, pairs, strict=True)
    )


def _points(grid: Any) -> Iterator[_Choice]:
    """All combinations of the grid; the last key varies fastest."""
    if grid is None:
        return
    if not isinstance(grid, dict) or not grid:
        raise UserError('[grid] must hold lists of values: "AdamW.learning_rate" = [1e-3, 3e-3]')
    axes = dict(_axes(grid))
    for values in itertools.product(*axes.values()):
        bindings = (Binding(f"{key} = {value}", "[grid]") for key, value in zip(axes, values, strict=True))
        yield _Choice(None, (), tuple(bindings))


def _axes(grid: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """The keys with their values as gin text; TOML reads `AdamW.learning_rate` without quotes as a table in a table."""
    for name, values in grid.items():
        key = f"{prefix}{name}"
        if key in _SHARED_KEYS:
            raise UserError(f"{key} stands in [grid]; it belongs to the head of the file, before the first [...]")
        if isinstance(values, dict):
            yield from _axes(values, f"{key}.")
            continue
        if not isinstance(values, list) or not values:
            raise UserError(f"[grid] {key} must be a list of the values to take, not {values!r}")
        try:
            texts = [gin_text(value) for value in values]
        except UserError as error:
            raise UserError(f"[grid] {key}: {error}") from error
        twice = next((text for text in texts if texts.count(text) > 1), None)
        if twice is not None:
            raise UserError(f"[grid] {key} has {twice} twice")
        yield key, texts


def _entries(entries: Any, path: Path) -> Iterator[_Choice]:
    if entries is None:
        return
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError("an entry of the list begins with [[list]], in two brackets")
    for number, entry in enumerate(entries):
        place = f"list[{number}]"
        _require_known(entry, _ENTRY_KEYS, f"{place}: ")
        name = entry.get("name")
        if name is not None and (not isinstance(name, str) or not name.strip()):
            raise UserError(f"{place}: name must be a text, not {name!r}")
        choice = _Choice(name, _files(entry, path, place), _bindings(entry, f"{place}.gin_bindings"))
        if not (choice.name or choice.gin_files or choice.bindings):
            raise UserError(f"{place} is empty: give it a name at least")
        yield choice


def _files(table: Mapping[str, Any], path: Path, place: str) -> tuple[str, ...]:
    """The names of gin files; the path for one in the folder of the sweep file."""
    names = _strings(table, "gin_file", f"{place}: " if place else "")
    return tuple(str(path.parent / name) if (path.parent / name).is_file() else name for name in names)


def _bindings(table: Mapping[str, Any], place: str) -> tuple[Binding, ...]:
    texts = _strings(table, "gin_bindings", place.removesuffix("gin_bindings").replace(".", ": "))
    return tuple(Binding(text.strip(), f"{place}[{number}]") for number, text in enumerate(texts))


def _strings(table: Mapping[str, Any], key: str, place: str) -> list[str]:
    value = table.get(key, [])
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
        raise UserError(f"{place}{key} must be a text or a list of texts, not {value!r}")
    return values


def _require_known(table: Mapping[str, Any], known: tuple[str, ...], place: str) -> None:
    for key in table:
        if key not in known:
            hint = did_you_mean(key, known) or "."
            raise UserError(f"{place}there is no {key!r}{hint} There are {', '.join(known)}")
