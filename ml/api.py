"""The calls of Juniper in Python. Importing this imports no torch: what needs it does so when it is called."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ml import building, launcher
from ml.building import SHIPPED_CONFIGS, build, build_trainer
from ml.config import Bindings, Config, ImportedValue
from ml.machine import choose_device
from ml.run_files import is_hugging_face_folder
from ml.runs import Run
from ml.runs.init_flags import init_statements
from ml.runs.pretrained import PretrainedFolder
from ml.runs.removed_sources import start_without_source

if TYPE_CHECKING:
    import torch

__all__ = ["SHIPPED_CONFIGS", "build", "build_trainer", "load", "open_run", "train"]


def load(
    gin_files: str | Path | Sequence[str | Path] = (),
    bindings: Bindings = (),
    *,
    init_from: str | Path | Run | None = None,
    init_step: int | None = None,
    init_state: str | None = None,
    init_may_differ: Sequence[str] = (),
    run_dir: str | Path | None = None,
    search_path: Sequence[str | Path] = (),
    imported: Iterable[ImportedValue] = (),
    allow_unused_bindings: bool = False,
    trust_code: bool = False,
) -> Config:
    """Loads and checks the configuration of a run.

    Args:
        gin_files: Names of gin files, found as given, in the working folder, in `search_path`, among the shipped ones.
            Without any, those of the run `init_from`.
        bindings: Gin statements that come after the files, `["Linear.bias = False"]`; or Python values by their keys,
            `{"Linear.bias": False, "block_3/DecoderBlock.mixer": Mamba2}`.
        init_from: The run, its folder, or the Hugging Face folder that this one starts from: its model is imported,
            weaker than any file, and `Trainer.initial_weights` is set to `@FromRun` or `@FromHuggingFace`.
        init_step: Step of its checkpoint; None for the newest valid one, which the new run records.
        init_state: What is taken from it, as `FromRun.state`: "weights", "average", or "all" to continue its training
            as a branch; None for the weights.
        init_may_differ: Patterns of the names of weights that may differ or be missing there, such as "head.*".
        run_dir: Folder of the run that is started or resumed so; once it has started, it provides the configuration of
            the model if the folder `init_from` has been removed since.
        search_path: More folders in which files are looked for.
        imported: Values of another pretrained checkpoint; weaker than any file or binding.
        allow_unused_bindings: Whether bindings without effect are warnings instead of errors.
        trust_code: Executes the copy of custom modules in a run folder, if a file is the operative config of a run.

    Returns:
        A value: two of them live in one process, and building from one never changes the other.

    Raises:
        ConfigError: The configuration has errors; it lists all of them.
        UserError: There is no run to start from.
    """
    path = init_from.path if isinstance(init_from, Run) else None if init_from is None else Path(init_from)
    removed = None if path is None or run_dir is None else start_without_source(Path(run_dir), path)
    is_hugging_face = removed == "FromHuggingFace" if removed else path is not None and is_hugging_face_folder(path)
    alone = not gin_files
    flags = init_statements(path, init_step, init_state, init_may_differ, alone=alone, hugging_face=is_hugging_face)
    if path is not None and run_dir is not None and removed:
        resumed = Run(run_dir, trust_code=trust_code)
        gin_files = gin_files if gin_files or is_hugging_face else resumed.config_file()
        imported = [*imported, *resumed.config.imported_layer()]
    elif path is not None and is_hugging_face:
        from ml.interop.folder import Folder
        from ml.interop.importing import imported_values

        imported = [*imported, *imported_values(Folder(path))]
    elif path is not None:
        source = init_from if isinstance(init_from, Run) else Run(path, trust_code=trust_code)
        gin_files = gin_files or source.config_file(init_step)
        imported = [*imported, *source.imported_values()]
    return building.load(
        gin_files,
        bindings,
        search_path=search_path,
        imported=imported,
        allow_unused_bindings=allow_unused_bindings,
        flags=flags,
        trust_code=trust_code,
    )


def train(
    config: Config,
    run_dir: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
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

    trainer = build_trainer(config)
    trainer.mesh_sizes(launcher.num_processes())  # before the processes wait for each other
    with started(choose_device(device), trainer.mesh.timeout) as world:
        data = None if trainer.length.num_epochs is None else world.together(trainer.open_data)
        launch = Launch(config, trainer, run_dir, world, extend, data)
        launch.train(sys.stdout if stream is None else stream)
        world.barrier()  # the first process may still be writing
    # Its code was executed to make `config`, and the hashes in the operative config hold the copy to it.
    return open_run(launch.folder.path, trust_code=bool(config.components))


def open_run(path: str | Path, *, trust_code: bool = False) -> Run:
    """Opens the folder of a run: its configuration, its weights and its metrics. Executes nothing that lies in it.

    A Hugging Face folder is opened as a run without a step: it generates, is evaluated and exported.

    Args:
        path: The folder.
        trust_code: Executes the copy of custom modules in the run folder, for a run with layers that are not installed.

    Raises:
        UserError: There is no run.
    """
    return PretrainedFolder(path) if is_hugging_face_folder(Path(path)) else Run(path, trust_code=trust_code)
