"""The short form of `Trainer.initial_weights = @FromRun`: `--init_from` and the flags that go with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml.errors import ArgumentError

_DEFAULTS: dict[str, Any] = {"state": "weights", "may_differ": [], "data_position": "continue"}


def init_statements(
    path: Path | None,
    step: int | None,
    state: str | None,
    may_differ: Sequence[str],
    *,
    alone: bool = False,
    hugging_face: bool = False,
) -> list[tuple[str, str]]:
    """Returns the gin statements that the flags stand for, each with the name of its flag.

    Args:
        path: Folder of the run to start from, or a Hugging Face folder; None for none.
        step: Step of its checkpoint; None for the newest valid one.
        state: What is taken from it; None for the default of `FromRun`, or what a file sets.
        may_differ: Patterns of the names of weights that may differ; empty for what a file sets.
        hugging_face: Whether it is a Hugging Face folder.
        alone: Whether there is no file but the configuration of that run, whose own start is no part of this one.

    Raises:
        ArgumentError: Another flag is given without a run.
    """
    given = {"init_step": step, "init_state": state, "init_may_differ": list(may_differ) or None}
    if path is None:
        if needless := next((name for name, value in given.items() if value is not None), None):
            raise ArgumentError(f"{{{needless}}} goes with {{init_from}}")
        return []
    if hugging_face:
        return _hugging_face_statements(path, given)
    statements = [
        ("--init_from", "Trainer.initial_weights = @FromRun"),
        ("--init_from", f"FromRun.path = {str(path)!r}"),
        ("--init_from", "FromRun.sha256 = None"),
        ("--init_from" if step is None else "--init_step", f"FromRun.step = {step!r}"),
    ]
    if alone:
        statements += [("--init_from", f"FromRun.{name} = {value!r}") for name, value in _DEFAULTS.items()]
    further = [(name, value) for name, value in given.items() if name != "init_step" and value is not None]
    return statements + [(f"--{name}", f"FromRun.{name.removeprefix('init_')} = {value!r}") for name, value in further]


def _hugging_face_statements(path: Path, given: Mapping[str, Any]) -> list[tuple[str, str]]:
    if alone := next((name for name in ("init_step", "init_state") if given[name] is not None), None):
        raise ArgumentError(f"{{{alone}}} goes with the folder of a run, and {path} is a Hugging Face folder")
    statements = [
        ("--init_from", "Trainer.initial_weights = @FromHuggingFace"),
        ("--init_from", f"FromHuggingFace.path = {str(path)!r}"),
        ("--init_from", "FromHuggingFace.sha256 = None"),
    ]
    if (may_differ := given["init_may_differ"]) is not None:
        statements.append(("--init_may_differ", f"FromHuggingFace.may_differ = {may_differ!r}"))
    return statements
