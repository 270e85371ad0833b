"""A sweep that is ready to run: every member's configuration is loaded and fits what its folder holds."""

import ast
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ml
from ml.config import Config, ConfigError, Location, Problem, compare
from ml.config.errors import report
from ml.errors import UserError
from ml.run_files import is_hugging_face_folder
from ml.runs.continuation import continuation
from ml.runs.pinning import pinned
from ml.sweeps.file import Member, Sweep
from ml.training.run_folder import RunFolder

_MOST_DIFFERENCES = 6
_FLAG = "--gin_bindings"  # what the places of bindings are called where `ml.load` reads them


@dataclass(frozen=True)
class PlannedRun:
    """A member with its configuration and its folder.

    Attributes:
        member: The member.
        config: Its configuration.
        folder: The folder of its run, which need not exist.
        num_steps: The number of steps of the whole run; None for a number of epochs, which the data tells.
        is_longer: Whether its folder holds the same run with fewer steps, which is extended.
        init_step: The step of `init_from` that it starts from; None without.
    """

    member: Member
    config: Config
    folder: RunFolder
    num_steps: int | None
    is_longer: bool = False
    init_step: int | None = None

    @property
    def log(self) -> Path:
        """The file with the output of its processes."""
        return self.folder.path / "log.txt"

    def command(self, sweep: Sweep) -> list[str]:
        """Returns the command that trains or resumes it."""
        train = Path(ml.__file__).parents[1] / "train.py"  # beside the package in a checkout and where it is installed
        flags = [
            *(f"--gin_file={file}" for file in self.member.gin_files),
            *(f"--gin_bindings={binding.text}" for binding in self.member.bindings),
            *(f"--gin_search_path={folder}" for folder in sweep.gin_search_path),
            *([f"--init_from={sweep.init_from}"] if sweep.init_from else []),
            *([f"--init_step={self.init_step}"] if self.init_step is not None else []),
            *(["--allow_unused_bindings"] if sweep.allow_unused_bindings else []),
            *(["--extend"] if self.is_longer else []),
        ]
        return [sys.executable, str(train), *flags, f"--run_dir={self.folder.path}"]


def plan(sweep: Sweep, directory: Path, say: Callable[[int], None] = lambda number: None) -> list[PlannedRun]:
    """Loads every configuration; nothing is written.

    Args:
        sweep: The sweep.
        directory: The folder of the runs, which are named after the members.
        say: Called with the number of each member before it is loaded.

    Raises:
        UserError: One report of all members that are wrong, that are the same run twice, or whose folders hold another.
    """
    source = _source(sweep.init_from) if sweep.init_from else None
    planned: list[PlannedRun] = []
    failures: dict[str, list[str]] = {}  # by report, the members that it is of
    for number, member in enumerate(sweep.members):
        say(number)
        try:
            config = ml.load(
                member.gin_files,
                [binding.text for binding in member.bindings],
                search_path=sweep.gin_search_path,
                init_from=source,
                allow_unused_bindings=sweep.allow_unused_bindings,
            )
        except ConfigError as error:
            failures.setdefault(_placed(error, sweep, member), []).append(member.name)
        except UserError as error:
            failures.setdefault(str(error), []).append(member.name)
        else:
            planned.append(_planned(member, config, RunFolder(directory / member.name)))
    if failures:
        raise UserError(_report(failures, sweep))
    _require_distinct(planned, sweep)
    return _in_own_folders(planned)


def _source(folder: str) -> ml.Run | str:
    """Returns the run in a folder, opened once for all members, or the Hugging Face folder itself."""
    return folder if is_hugging_face_folder(Path(folder)) else ml.open_run(folder)


def _placed(error: ConfigError, sweep: Sweep, member: Member) -> str:
    """The report, with the places of bindings in the file of the sweep."""
    places = {f"{_FLAG}[{number}]": binding.place for number, binding in enumerate(member.bindings)}

    def placed(problem: Problem) -> Problem:
        place = places.get(problem.location.source) if problem.location else None
        return replace(problem, location=Location(f"{sweep.path}: {place}")) if place else problem

    return report([placed(problem) for problem in error.problems])


def _report(failures: dict[str, list[str]], sweep: Sweep) -> str:
    parts = []
    for text, names in failures.items():
        who = "every member" if len(names) == len(sweep.members) > 1 else ", ".join(names)
        parts.append(f"{sweep.path}: {who}: {text}")
    return "\n".join(parts)


def _require_distinct(planned: Sequence[PlannedRun], sweep: Sweep) -> None:
    seen: dict[Config, str] = {}
    for run in planned:
        other = seen.setdefault(run.config, run.member.name)
        if other != run.member.name:
            raise UserError(
                f"{sweep.path}: {other} and {run.member.name} are the same run: all of their values are equal"
            )


def _in_own_folders(planned: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Returns the runs, with those to lengthen.

    Raises:
        UserError: A folder holds a run of another configuration, as after a change of the sweep's file.
    """
    parts: list[str] = []
    found: list[PlannedRun] = []
    for run in planned:
        saved = run.folder.operative_config() if run.folder.is_begun else None
        difference = compare(run.config.operative if saved is None else saved, run.config.operative)
        changed = {one.name for one in [*difference.removed, *difference.added]}
        if changed in ({"Trainer.num_steps"}, {"Trainer.num_epochs"}):
            try:
                extension = continuation(run.config, run.folder, extend=True)
                found.append(replace(run, is_longer=extension.is_extension))
            except UserError as error:
                parts.append(str(error))
        elif difference:
            lines = difference.lines
            more = [f"  and {len(lines) - _MOST_DIFFERENCES} more"] if len(lines) > _MOST_DIFFERENCES else []
            parts += [f"{run.folder.path} differs in", *(f"  {line}" for line in lines[:_MOST_DIFFERENCES]), *more]
        else:
            found.append(run)
    if parts:
        shown = "\n".join(parts)
        raise UserError(
            "the sweep has been changed since these were run: name another --output, remove them, or take the change "
            f"back (- there, + in the file)\n{shown}"
        )
    return found


def _planned(member: Member, config: Config, folder: RunFolder) -> PlannedRun:
    config = pinned(config, folder)
    wanted = ("Trainer.num_steps", "FromRun.step")
    values = {name: r.value for r in config.records() if (name := f"{r.configurable}.{r.parameter}") in wanted}
    init_step = int(values["FromRun.step"]) if "FromRun.step" in values else None
    num_steps = ast.literal_eval(values["Trainer.num_steps"])
    return PlannedRun(member, config, folder, num_steps, init_step=init_step)
