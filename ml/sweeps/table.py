"""The members of a sweep side by side: as a table on the terminal, as CSV, as JSON."""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml.config.errors import did_you_mean
from ml.errors import RunFailure, UserError
from ml.files import write_atomically
from ml.plots.labels import shorten
from ml.sweeps.file import Sweep
from ml.sweeps.state import State
from ml.terminal import table

_MEASURED = ("validation_loss", "validation_bits_per_byte", "loss", "tokens_per_second", "seconds")
_LONGEST_CELL = 40


def default_order(states: Sequence[State]) -> str:
    """The metric to sort by: the validation loss, that of the first named set, or the training loss."""
    names = list(dict.fromkeys(name for state in states for name in state.metrics.names))
    if "validation_loss" in names:
        return "validation_loss"
    return next((name for name in names if name.startswith("validation_") and name.endswith("_loss")), "loss")


def in_order(states: Sequence[State], sort_by: str) -> list[State]:
    """The members by their last value of a metric, the lowest first, or the highest with a `-` before its name.

    Those that have not measured it come last, in the order of the file.

    Raises:
        UserError: None has measured it, though they have measured something.
    """
    name = sort_by.removeprefix("-")
    sign = -1.0 if sort_by.startswith("-") else 1.0
    known = list(dict.fromkeys(known for state in states for known in state.metrics.names))
    if known and name not in known:
        raise UserError(f"--sort_by: no member has measured {name!r}{did_you_mean(name, known)}")

    def place(state: State) -> float:
        value = state.metrics.last(name)
        return math.inf if value is None else sign * value

    return sorted(states, key=place)


def as_text(states: Sequence[State], sort_by: str) -> str:
    """Returns a table for a terminal: choices, metrics and status of each member."""
    choices = _choices(states)
    measured = _shown_metrics(states, sort_by)
    rows = [[*choices, "step", *measured, "status"]]
    for state in states:
        values = [state.metrics.last(name) for name in measured]
        rows.append(
            [
                *(shorten(state.run.member.choices.get(key, ""), _LONGEST_CELL) for key in choices),
                str(state.step),
                *(_number(value) for value in values),
                state.text,
            ]
        )
    is_number = [key in ("step", *measured) for key in rows[0]]
    rules = ["-" * max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(table([rows[0], rules, *rows[1:]], right=is_number))


def as_csv(states: Sequence[State]) -> str:
    """All members, what was chosen for them and the last value of everything that they measured."""
    choices = _choices(states)
    names = _names(states)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["member", *choices, "status", "exit_code", *names])
    for state in states:
        chosen = [state.run.member.choices.get(key) for key in choices]
        measured = [state.metrics.last(name) for name in names]
        writer.writerow([state.run.member.name, *chosen, state.status.value, state.exit_code, *measured])
    return text.getvalue()


def as_json(sweep: Sweep, states: Sequence[State]) -> dict[str, Any]:
    """Returns the content of `sweep.json`: the statements, folder, state and last metrics of each member."""
    members = [
        {
            "name": state.run.member.name,
            "folder": str(state.run.folder.path),
            "fingerprint": state.run.config.fingerprint,
            "gin_file": list(state.run.member.gin_files),
            "gin_bindings": [binding.text for binding in state.run.member.bindings],
            "choices": dict(state.run.member.choices),
            "status": state.status.value,
            "exit_code": state.exit_code,
            "reason": state.reason,
            "last": {name: state.metrics.last(name) for name in state.metrics.names},
        }
        for state in states
    ]
    return {"file": str(sweep.path), "members": members}


def write(directory: Path, sweep: Sweep, states: Sequence[State]) -> None:
    """Writes `table.csv` and `sweep.json`.

    Raises:
        RunFailure: They cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / "table.csv", as_csv(states))
        write_atomically(directory / "sweep.json", json.dumps(as_json(sweep, states), indent=1) + "\n")
    except OSError as error:
        raise RunFailure(f"cannot write to {directory}: {error.strerror}") from error


def _choices(states: Sequence[State]) -> list[str]:
    """The columns that distinguish the members, in the order of the file."""
    return list(dict.fromkeys(key for state in states for key in state.run.member.choices))


def _names(states: Sequence[State]) -> list[str]:
    return list(dict.fromkeys(name for state in states for name in state.metrics.names))


def _shown_metrics(states: Sequence[State], sort_by: str) -> list[str]:
    """Few enough for a terminal, what is sorted by first."""
    there = _names(states)
    return [name for name in dict.fromkeys([sort_by.removeprefix("-"), *_MEASURED]) if name in there]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000.0 else f"{value:.4g}" if abs(value) < 0.01 else f"{value:.4f}"
