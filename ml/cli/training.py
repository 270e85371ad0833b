"""What `train.py` does: load a configuration, show it, or train from it."""

import datetime
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import ml
from ml.api import build_trainer
from ml.config import Config, ConfigError, difference, explain, fingerprint, select
from ml.config.errors import report
from ml.data import Dataset
from ml.errors import UserError
from ml.models.summary import summarize
from ml.runs import open_teacher
from ml.training import Initial, RunFolder, Trainer, train
from ml.training.preflight import warnings_of
from ml.training.summary import memory_of_training, notes, summarize_training

_MOST_DIFFERENCES = 20


@dataclass(frozen=True)
class Job:
    """A configuration that is ready to run, and the run that its weights come from, if any."""

    config: Config
    init_from: ml.Run | None = None
    init_may_differ: tuple[str, ...] = ()


def load_job(
    gin_files: Sequence[str],
    bindings: Sequence[str],
    *,
    search_path: Sequence[str] = (),
    init_from: str | None = None,
    init_may_differ: Sequence[str] = (),
    allow_unused_bindings: bool = False,
    trust_code: bool = False,
) -> Job:
    """Loads and checks what the flags name.

    Raises:
        UserError: with everything that is wrong.
    """
    if not gin_files and not bindings:
        shipped = ", ".join(sorted(p.relative_to(ml.SHIPPED_CONFIGS).as_posix() for p in _shipped()))
        raise UserError(f"no configuration: name one with --gin_file=base.gin. There are {shipped}")
    if init_may_differ and init_from is None:
        raise UserError("--init_may_differ goes with --init_from")
    source = ml.open_run(init_from, trust_code=trust_code) if init_from is not None else None
    config = ml.load(
        gin_files,
        bindings,
        search_path=search_path,
        imported=source.imported_values() if source else (),
        allow_unused_bindings=allow_unused_bindings,
        trust_code=trust_code,
    )
    if config.warnings:
        print(report(list(config.warnings), "warning"), file=sys.stderr)
    return Job(config, source, tuple(init_may_differ))


def show(job: Job, run_dir: str | None, pattern: str | None) -> int:
    """Prints the model and who set what, and writes the configuration of the run that would be."""
    config = job.config
    trainer = build_trainer(config)
    _initial(job, trainer)
    print(summarize(trainer.model, trainer.sequence_length, memory_of_training(trainer)))
    print(f"\n{summarize_training(trainer)}")
    for note in notes(trainer):
        print(f"\n{note}")
    _warn(trainer, _device())
    if pattern is not None:
        found = select(config.records(), pattern)
        if not found:
            raise UserError(f"no parameter matches --explain={pattern}")
        print(f"\n{explain(found)}")
    run = _folder(config, run_dir)
    run.create()
    run.write_config(config.text, config.operative, config.provenance(), config.components)
    print(f"\nThe configuration is right, and nothing was trained. It is written to {run.path}")
    return 0


def run(job: Job, run_dir: str | None) -> int:
    """Trains from the first step, or from where the run in the folder stopped."""
    config = job.config
    folder = _folder(config, run_dir)
    device = _device()
    trainer = build_trainer(config)
    trainer.check_machine()
    # Before anything is written: what is wrong with the weights or the data leaves no folder behind.
    initial = _initial(job, trainer)
    teacher = open_teacher(trainer, device)
    run_data = trainer.open_data()
    _warn(trainer, device, run_data.training)
    folder.create()
    folder.write_config(config.text, config.operative, config.provenance(), config.components)
    folder.write_environment(data=run_data.describe(), peak_flops=trainer.peak_flops(device).as_json())
    count = sum(parameter.numel() for parameter in trainer.model.parameters())
    tokens = f"{run_data.training.num_train_tokens:,} tokens to train on"
    print(f"{config.name}: {count:,} parameters, {tokens}, {device}, {folder.path}")
    train(trainer, run_data, folder, device, initial=initial, teacher=teacher)
    return 0


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _warn(trainer: Trainer, device: torch.device, dataset: Dataset | None = None) -> None:
    for warning in warnings_of(trainer, device, dataset):
        print(f"warning: {warning}", file=sys.stderr)


def _initial(job: Job, trainer: Trainer) -> Initial | None:
    """The weights to start from, if any.

    Raises:
        RunError: They do not fit the model, which need not be made to tell.
    """
    if job.init_from is None:
        return None
    initial = Initial(job.init_from.checkpoint(), job.init_may_differ)
    initial.read(trainer.model, say=lambda _: None)
    return initial


def _folder(config: Config, run_dir: str | None) -> RunFolder:
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
        raise UserError(
            f"{run_dir} holds a run of another configuration. Name another --run_dir, or go on with the one that is "
            f"there: --gin_file={run_dir}/operative_config.gin. It differs (- there, + here) in\n{shown}{more}"
        )
    return folder


def _unused(path: Path) -> Path:
    """The path, or with a number behind it when two runs start in one second."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _shipped() -> list[Path]:
    return [path for path in ml.SHIPPED_CONFIGS.rglob("*.gin") if "tests" not in path.parts]


__all__ = ["ConfigError", "Job", "load_job", "run", "show"]
