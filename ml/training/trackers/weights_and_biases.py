"""Metrics for Weights & Biases."""

import ast
import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from ml import metric_names
from ml.config import configurable
from ml.config.scopes import compress
from ml.files import write_atomically
from ml.optional import optional_import
from ml.training.errors import RunError
from ml.training.run_folder import RunFolder
from ml.training.trackers.tracker import Tracker


@configurable
class WeightsAndBiases(Tracker):
    """Sends every number by step to Weights & Biases, with the parameters in effect as its config.

    Its files are in `wandb/` of the run; the id there makes a run that goes on the same run. Offline, what was measured
    before is written again, so that the newest folder there is the whole run: `wandb sync` takes it online.

    Args:
        project: The project that the run belongs to; None leaves it to the settings of wandb.
        entity: The user or team; None is the user's default.
        name: What the run is called; None is the name of its folder.
        mode: "online", "offline" (no network is needed), or "disabled".
    """

    def __init__(
        self,
        project: str | None = None,
        entity: str | None = None,
        name: str | None = None,
        mode: Literal["online", "offline", "disabled"] = "online",
    ):
        self.project = project
        self.entity = entity
        self.name = name
        self.mode = mode

    def check(self) -> None:
        self._library()

    def start(self, run: RunFolder, step: int) -> None:
        wandb = self._library()
        folder = run.path / "wandb"
        folder.mkdir(exist_ok=True)
        identity = _identity(folder)
        before = list(folder.glob(f"offline-run-*-{identity}"))
        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            name=self.name or run.path.resolve().name,
            id=identity,
            mode=self.mode,
            dir=str(run.path),
            config=effective_parameters(run.provenance),
            resume=None if self.mode == "offline" else "allow",
            settings=wandb.Settings(console="off"),  # the progress line is no log
        )
        # Online, the server knows the steps up to here, and takes none of them twice. Offline it begins with nothing.
        self._next_step = self._run.step
        for record in run.metrics():
            self.log(record)
        if self.mode == "offline":
            for superseded in before:
                shutil.rmtree(superseded, ignore_errors=True)

    def log(self, record: Mapping[str, Any]) -> None:
        if record["step"] >= self._next_step:
            self._run.log(metric_names.scalars(record), step=record["step"], commit=True)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))

    def _library(self) -> ModuleType:
        return optional_import("wandb", "wandb", "WeightsAndBiases", RunError)


def _identity(folder: Path) -> str:
    """The id of the run, made the first time."""
    file = folder / "run_id.txt"
    if not file.exists():
        write_atomically(file, uuid.uuid4().hex[:12])
    return file.read_text("utf-8").strip()


def effective_parameters(provenance: Path) -> dict[str, Any]:
    """What took effect in a run, by "Configurable.parameter", with the places in front where they differ.

    Args:
        provenance: The file of the run; one that is not there gives nothing.
    """
    if not provenance.exists():
        return {}
    places: dict[str, dict[str, list[tuple[str, ...]]]] = {}
    for record in json.loads(provenance.read_text("utf-8"))["records"]:
        name = f"{record['configurable']}.{record['parameter']}"
        path = tuple(record["path"].split("/")) if record["path"] else ()
        places.setdefault(name, {}).setdefault(record["value"], []).append(path)
    found: dict[str, Any] = {}
    for name, values in places.items():
        for value, paths in values.items():
            scopes = [""] if len(values) == 1 else compress(paths)
            found |= {f"{scope}/{name}".lstrip("/"): _literal(value) for scope in scopes}
    return found


def _literal(text: str) -> Any:
    """The value that gin text stands for; text for a reference or a macro."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
