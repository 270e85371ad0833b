"""A run about to start: the rules of its folder, its warnings, and training itself."""

import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import torch

from ml.building import build_trainer
from ml.config import Config, difference, fingerprint
from ml.config.errors import report
from ml.data import Dataset
from ml.errors import ArgumentError
from ml.runs.run import Run
from ml.runs.teacher import open_teacher
from ml.training import InitialWeights, Outcome, RunFolder, Trainer, train
from ml.training.preflight import warnings_of

_MOST_DIFFERENCES = 20


class Launch:
    """A run whose folder and initial weights were found to fit; nothing is written yet.

    Args:
        config: The configuration.
        run_dir: Folder of the run; None for `runs/<config name>-<UTC time>`.
        device: Where to train.
        init_from: The run whose weights this one starts from.
        init_may_differ: Patterns of the names of weights that may differ or be missing there.

    Raises:
        UserError: The folder holds a run of another configuration, or the initial weights do not fit.
    """

    def __init__(
        self,
        config: Config,
        run_dir: str | Path | None,
        device: torch.device,
        init_from: Run | None = None,
        init_may_differ: Sequence[str] = (),
    ):
        if init_may_differ and init_from is None:
            raise ArgumentError("{init_may_differ} goes with {init_from}")
        self.config = config
        self.folder = _folder(config, run_dir)
        self.device = device
        self.trainer = build_trainer(config)
        self.initial = None if init_from is None else _initial(init_from, init_may_differ, self.trainer)

    def print_warnings(self, dataset: Dataset | None = None) -> None:
        """Prints the warnings of the configuration and of the preflight to standard error.

        Args:
            dataset: The training data where it is open; None takes what is known of it before.
        """
        if self.config.warnings:
            print(report(list(self.config.warnings), "warning"), file=sys.stderr)
        for warning in warnings_of(self.trainer, self.device, dataset):
            print(f"warning: {warning}", file=sys.stderr)

    def write_config(self) -> None:
        """Creates the folder and writes the configuration to it."""
        config = self.config
        self.folder.create()
        self.folder.write_config(config.text, config.operative, config.provenance(), config.components)

    def train(self, stream: TextIO) -> Outcome:
        """Trains from the first step, or from the newest checkpoint in the folder.

        What is wrong with the machine, the teacher or the data is found before anything is written.
        """
        trainer, device, folder = self.trainer, self.device, self.folder
        trainer.check_machine()
        teacher = open_teacher(trainer, device)
        data = trainer.open_data()
        self.print_warnings(data.training)
        self.write_config()
        folder.write_environment(data=data.describe(), peak_flops=trainer.peak_flops(device).as_json())
        count = sum(parameter.numel() for parameter in trainer.model.parameters())
        tokens = f"{data.training.num_train_tokens:,} tokens to train on"
        print(f"{self.config.name}: {count:,} parameters, {tokens}, {device}, {folder.path}", file=stream, flush=True)
        return train(trainer, data, folder, device, initial=self.initial, teacher=teacher, stream=stream)


def _initial(run: Run, may_differ: Sequence[str], trainer: Trainer) -> InitialWeights:
    """The weights to start from; the model is still on the meta device and only compared with them."""
    initial = InitialWeights(run.checkpoint(), tuple(may_differ))
    initial.read(trainer.model, say=lambda _: None)
    return initial


def _folder(config: Config, run_dir: str | Path | None) -> RunFolder:
    """The folder of the run; one that holds another run is refused."""
    if run_dir is None:
        time = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
        return RunFolder(_unused(Path("runs") / f"{config.name}-{time}"))
    folder = RunFolder(run_dir)
    saved = folder.operative_config()
    if saved is not None and fingerprint(saved) != config.fingerprint:
        lines = difference(saved, config.operative)
        shown = "\n".join(f"  {line}" for line in lines[:_MOST_DIFFERENCES])
        more = f"\n  and {len(lines) - _MOST_DIFFERENCES} more" if len(lines) > _MOST_DIFFERENCES else ""
        raise ArgumentError(
            "%s holds a run of another configuration. Name another {run_dir}, or load the configuration that is there, "
            "%s/operative_config.gin. It differs (- there, + here) in\n%s",
            run_dir,
            run_dir,
            shown + more,
        )
    return folder


def _unused(path: Path) -> Path:
    """The path, with a number at its end when two runs start in one second."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
