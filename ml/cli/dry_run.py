"""Show the run that a configuration would be."""

from collections.abc import Sequence

import torch

from ml.building import build_trainer
from ml.config import Config, explain, select
from ml.distributed import World
from ml.errors import UserError
from ml.machine import choose_device
from ml.models.summary import summarize
from ml.runs import Run, open_teacher
from ml.runs.launch import Launch
from ml.training.summary import memory_of_training, notes, summarize_training


def show(
    config: Config, run_dir: str | None, pattern: str | None, init_from: Run | None, init_may_differ: Sequence[str]
) -> None:
    """Prints the model and the sources of its values, and writes the configuration of the run."""
    trainer = build_trainer(config)
    launch = Launch(config, trainer, run_dir, World(device=choose_device(None)), init_from, init_may_differ)
    open_teacher(trainer, torch.device("meta"))
    print(summarize(trainer.model, trainer.sequence_length, memory_of_training(trainer)))
    print(f"\n{summarize_training(trainer)}")
    for note in notes(trainer):
        print(f"\n{note}")
    launch.print_warnings()
    if pattern is not None:
        found = select(config.records(), pattern)
        if not found:
            raise UserError(f"no parameter matches --explain={pattern}")
        print(f"\n{explain(found)}")
    launch.write_config()
    print(f"\nThe configuration is right, and nothing was trained. It is written to {launch.folder.path}")
