"""Run a sweep: a grid or a list of bindings, one run after another, with a table and a picture at the end."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ml.cli.path_argument import path_text, to_path
from ml.errors import RunFailure, UserError

if TYPE_CHECKING:
    from ml.sweeps.file import Sweep
    from ml.sweeps.plan import PlannedRun
    from ml.sweeps.state import State


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=path_text, help="a TOML file, or a shipped one as sweeps/learning_rate.toml")
    parser.add_argument("--output", type=to_path, metavar="DIR", help="holds a folder a run (default sweeps/NAME)")
    parser.add_argument("--sort_by", metavar="METRIC", help="of the table, lowest first; -METRIC for highest first")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--dry_run", action="store_true", help="check every member and list them; run nothing")
    instead.add_argument("--print", action="store_true", help="print the commands of those not finished; run nothing")
    instead.add_argument("--report", action="store_true", help="table and picture of what is there; run nothing")


def run(arguments: argparse.Namespace) -> None:
    """Does what was asked.

    Raises:
        UserError: The file, or the configuration of a member, is wrong; nothing was run.
        RunFailure: Not every member is finished.
    """
    from ml.sweeps.file import read_sweep
    from ml.sweeps.state import Status, state_of

    path = _find(arguments.file)
    sweep = read_sweep(path)
    directory = arguments.output or Path("sweeps") / path.stem
    planned = _planned(sweep, directory)
    if arguments.dry_run or arguments.print or arguments.report:
        states = [state_of(run) for run in planned]
        if arguments.dry_run:
            _list(states)
        elif arguments.print:
            left = [state.run for state in states if state.status is not Status.FINISHED]
            print("".join(f"{shlex.join(run.command(sweep))}\n" for run in left), end="")
        else:
            _report(sweep, states, directory, arguments.sort_by)
        return
    _run_all(sweep, planned, directory, arguments.sort_by)


def _run_all(sweep: "Sweep", planned: "Sequence[PlannedRun]", directory: Path, sort_by: str | None) -> None:
    from ml.cli.sweep_progress import watcher_on
    from ml.sweeps.process import run_members
    from ml.sweeps.state import Status

    _name_strangers(planned, directory)
    if longer := [run.member.name for run in planned if run.is_longer]:
        print(f"extended to more steps: {', '.join(longer)}")
    states, is_stopped = run_members(sweep, planned, directory, watcher_on(sys.stdout, len(planned)))
    print()
    _report(sweep, states, directory, sort_by)
    left = sum(state.status is not Status.FINISHED for state in states)
    if is_stopped:
        raise RunFailure(f"stopped with {left} of {len(states)} runs to go; the same command resumes from there")
    if left:
        raise RunFailure(f"{left} of {len(states)} runs did not finish; the same command tries them again")


def _planned(sweep: "Sweep", directory: Path) -> "list[PlannedRun]":
    from ml.sweeps.plan import plan

    is_shown = sys.stderr.isatty()

    def say(number: int) -> None:
        if is_shown:
            print(f"\rchecking {number + 1} of {len(sweep.members)}\x1b[K", end="", file=sys.stderr, flush=True)

    try:
        return plan(sweep, directory, say)
    finally:
        if is_shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _list(states: "Sequence[State]") -> None:
    width = max(len(state.run.member.name) for state in states)
    print("\n".join(f"{state.run.member.name:<{width}}  {state.text}" for state in states))
    print(f"\nEvery configuration is right, and nothing was run. {len(states)} runs")


def _report(sweep: "Sweep", states: "Sequence[State]", directory: Path, sort_by: str | None) -> None:
    """Prints the table and what failed, and writes the files of the sweep beside the folders of its runs."""
    from ml.sweeps import table
    from ml.sweeps.state import Status, exit_text

    key, unknown = sort_by or table.default_order(states), None
    try:
        ranked = table.in_order(states, key)
    except UserError as error:  # runs of many hours are over: show them all the same
        key, unknown = table.default_order(states), error
        ranked = table.in_order(states, key)
    table.write(directory, sweep, ranked)
    print(table.as_text(ranked, key))
    for state in ranked:
        if state.status is Status.FAILED:
            print(f"\n{state.run.member.name}: {exit_text(state.exit_code)}, {state.run.log}\n    {state.reason}")
    print(f"\n{directory / 'table.csv'}  {directory / 'sweep.json'}  {_draw(states, directory)}")
    if unknown is not None:
        raise unknown


def _draw(states: "Sequence[State]", directory: Path) -> str:
    """Draws the members that have measured something; returns where, or why not."""
    from ml.plots.figure import Curve, Style, check_format, draw, save

    curves = [Curve(_label(state), state.metrics) for state in states if state.metrics.records]
    path = directory / "plot.png"
    if not curves:
        return "(nothing to draw yet)"
    try:
        check_format(path)
    except UserError as error:
        return f"(no picture: {error})"
    save(draw(curves, Style()), path)
    return str(path)


def _label(state: "State") -> str:
    from ml.plots.labels import shorten

    chosen = state.run.member.choices.items()
    return shorten("  ".join(value if key == "name" else f"{key}={value}" for key, value in chosen), 64)


def _name_strangers(planned: "Sequence[PlannedRun]", directory: Path) -> None:
    """Reports runs in the folder that are no longer in the file; they are kept."""
    own = {run.folder.path.name for run in planned}
    others = [path.parent.name for path in sorted(directory.glob("*/operative_config.gin"))]
    if strangers := [name for name in others if name not in own]:
        print(f"not of this sweep, and left alone: {', '.join(strangers)}")


def _find(name: str) -> Path:
    """A file as given, or a shipped one of that name."""
    import ml
    from ml.config.errors import did_you_mean

    for path in (Path(name), ml.SHIPPED_CONFIGS / name):
        if path.is_file():
            return path
    root = ml.SHIPPED_CONFIGS
    shipped = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*.toml"))]
    raise UserError(f"there is no sweep file {name}{did_you_mean(name, shipped)}")
