"""The calls of Juniper in Python. Importing this imports no torch: what needs it does so when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ml import launcher
from ml.building import SHIPPED_CONFIGS, build, build_trainer, load
from ml.config import Config
from ml.machine import choose_device
from ml.runs import Run

if TYPE_CHECKING:
    import torch

__all__ = ["SHIPPED_CONFIGS", "build", "build_trainer", "load", "open_run", "train"]


def train(
    config: Config,
    run_dir: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    init_from: str | Path | Run | None = None,
    init_may_differ: Sequence[str] = (),
    extend: bool = False,
    stream: TextIO | None = None,
) -> Run:
    """Trains a model, as `juniper train` does. Under `torchrun` all processes make this call and train together.

    SIGINT (an interrupted cell of a notebook) and SIGTERM stop after the step that is being taken, with a checkpoint;
    then `Run.is_finished` is False, and the same call with `run_dir=run.path` resumes. Warnings go to standard error.

    Args:
        config: The configuration, from `ml.load`.
        run_dir: Folder of the run; None for `runs/<config name>-<UTC time>`. A run in it is resumed when it has the
            same configuration, and refused otherwise.
        device: Where to train; None for the GPU where there is one.
        init_from: The run, or its folder, whose newest weights this one starts from. `ml.load` takes its configuration,
            `imported=run.imported_values()`.
        init_may_differ: Patterns of the names of weights that may differ or be missing there, such as "head.*".
        extend: Whether the run in `run_dir` may change from its next step on: more steps, another learning rate,
            schedule or batch size.
        stream: Takes the progress; None for standard output.

    Returns:
        The run, as `ml.open_run` opens it.

    Raises:
        UserError: The folder holds another run, or the machine, the data or the initial weights do not fit.
        RunFailure: The loss is not finite, the disk takes no more, or the data is no longer there.
    """
    from ml.distributed.world import started
    from ml.runs.launch import Launch

    source = Run(init_from) if isinstance(init_from, str | Path) else init_from
    trainer = build_trainer(config)
    trainer.mesh_sizes(launcher.num_processes())  # before the processes wait for each other
    with started(choose_device(device), trainer.mesh.timeout) as world:
        launch = Launch(config, trainer, run_dir, world, source, init_may_differ, extend)
        launch.train(sys.stdout if stream is None else stream)
        world.barrier()  # the first process may still be writing
    # Its code was executed to make `config`, and the hashes in the operative config hold the copy to it.
    return open_run(launch.folder.path, trust_code=bool(config.components))


def open_run(path: str | Path, *, trust_code: bool = False) -> Run:
    """Opens the folder of a run: its configuration, its weights and its metrics. Executes nothing that lies in it.

    Args:
        path: The folder.
        trust_code: Executes the copy of custom modules in the run folder, for a run with layers that are not installed.

    Raises:
        UserError: There is no run.
    """
    return Run(path, trust_code=trust_code)
