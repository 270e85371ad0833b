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


@configurable(neutral=True)
class WeightsAndBiases(Tracker):
    """Logs every metric by step to Weights & Biases, with the effective parameters as its config.

    Its files are in `wandb/` of the run; the id stored there makes a resumed run the same run online. Offline, a
    resumed run logs the earlier metrics again, so that the newest folder is complete; `wandb sync` uploads it.

    Args:
        project: Project of the run; None for the setting of wandb.
        entity: User or team; None for the user's default.
        name: Name of the run; None for the name of its folder.
        mode: "online", "offline" (without network), or "disabled".
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
            settings=wandb.Settings(console="off"),  # the progress line is not a log
        )
        # Online, the server has the earlier steps and accepts none twice. Offline, the run starts empty.
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
    """Returns the id of the run; creates it the first time."""
    file = folder / "run_id.txt"
    if not file.exists():
        write_atomically(file, uuid.uuid4().hex[:12])
    return file.read_text("utf-8").strip()


def effective_parameters(provenance: Path) -> dict[str, Any]:
    """Returns the effective parameters of a run by "Configurable.parameter", with a scope prefix where values differ.

    Args:
        provenance: The file `provenance.json` of the run; a missing file gives an empty dict.
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
    """Parses a gin value; returns the text of a reference or a macro."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
