"""Show the run that a configuration would be."""

from typing import NamedTuple

import torch

from ml import launcher
from ml.building import build_trainer
from ml.config import Config, explain, select
from ml.data import DataError
from ml.data.errors import MissingData
from ml.distributed import MeshSizes, World
from ml.distributed.estimate.planned_world import PlannedWorld
from ml.errors import UserError
from ml.machine import choose_device
from ml.models.summary import size_text, summarize
from ml.runs import open_teacher
from ml.runs.launch import Launch
from ml.training import RunData, Trainer
from ml.training.data_report import describe_data
from ml.training.summary import describe_kernels, memory_of_training, notes, summarize_training

_ON_MESH = (
    "memory and time are those without Trainer.compile, which stores fewer intermediate results: the run needs less"
)
_ALONE = "the time is that without Trainer.compile, which reads and writes fewer intermediate results"


class Machines(NamedTuple):
    """The machines to plan for, as far as the command line tells; facts that are no part of the configuration.

    Attributes:
        world_size: Number of processes; None for a single one.
        device_memory: Bytes of a device; None if unknown.
    """

    world_size: int | None = None
    device_memory: int | None = None

    @property
    def is_planned(self) -> bool:
        """True where a plan is asked for."""
        return self.world_size is not None or self.device_memory is not None


def show(
    config: Config,
    run_dir: str | None,
    pattern: str | None,
    machines: Machines,
    *,
    extend: bool = False,
) -> None:
    """Prints the model, the sources of its values and the plan, and writes the configuration of the run.

    Of several processes of a launcher, whose number the mesh is checked against, the first one does so.
    """
    if launcher.rank() > 0:
        return
    trainer = build_trainer(config)
    num_processes = machines.world_size
    if num_processes is None:
        num_processes = launcher.num_processes() if launcher.is_launched() else trainer.mesh.smallest_world
    device = choose_device(None)
    world = World(device=device) if num_processes == 1 else PlannedWorld(size=num_processes, device=device)
    if not machines.is_planned:
        trainer.check_device(device)
    data, obstacle = _open_data(trainer, is_here=not machines.is_planned)
    launch = Launch(config, trainer, run_dir, world, extend, data)
    config, trainer = launch.config, launch.trainer
    guide = open_teacher(trainer, torch.device("meta"))
    num_frozen_bytes = 0 if guide is None else guide.num_bytes
    print(summarize(trainer.model, trainer.sequence_length, memory_of_training(trainer, guide)))
    print(f"\n{summarize_training(trainer)}")
    print(f"\n{obstacle if data is None else describe_data(trainer, data.training)}")
    if launch.sizes.world_size > 1:
        print(f"\nmesh              {launch.sizes.world_size} processes: {launch.sizes}")
    for line in launch.start_lines:
        print(f"\n{line}")
    kernels = describe_kernels(trainer, "cuda" if machines.is_planned else device.type)
    for note in (*([] if kernels is None else [kernels]), *notes(trainer)):
        print(f"\n{note}")
    available = machines.device_memory
    if num_frozen_bytes:
        print(f"\n{_frozen(num_frozen_bytes, available)}")
        available = None if available is None else max(available - num_frozen_bytes, 0)
    if machines.is_planned:
        _show_plan(trainer, launch.sizes, available)
    elif launch.sizes.world_size == 1:
        _show_memory(trainer, device)
    if trainer.compile and machines.is_planned:
        print(f"\n{_ALONE if launch.sizes.world_size == 1 else _ON_MESH}")
    launch.print_warnings(None if data is None else data.training, guide, is_here=not machines.is_planned)
    if pattern is not None:
        found = select(config.records(), pattern)
        if not found:
            raise UserError(f"no parameter matches --explain={pattern}")
        print(f"\n{explain(found)}")
    for notice in launch.notices:
        print(f"\n{notice}")
    if launch.continuation.saved is not None:
        print(f"\nThe configuration is right, and nothing was trained. The run in {launch.folder.path} is unchanged")
        return
    launch.write_config()
    print(f"\nThe configuration is right, and nothing was trained. It is written to {launch.folder.path}")


def _frozen(num_bytes: int, device_memory: int | None) -> str:
    """Describes the memory of a teacher or a reference, which is not part of the plan."""
    line = f"frozen model      {size_text(num_bytes)} of weights on each device besides"
    return line if device_memory is None else f"{line}, of its {size_text(device_memory)}"


def _show_memory(trainer: Trainer, device: torch.device) -> None:
    """Prints the memory of a step with its activations, which a trace on fake tensors measures."""
    from ml.training import estimate

    try:
        memory = estimate.memory_of_step(trainer, device)
    except Exception as error:  # of any layer, such as one that reads the values of its tensors
        reason = str(error).strip().splitlines() or [type(error).__name__]
        print(f"\nactivations are not estimated, because a step on tensors without values fails: {reason[0]}")
        return
    print(f"\n{estimate.describe_memory(memory, f'memory of a step on {device.type}')}")


def _open_data(trainer: Trainer, *, is_here: bool) -> tuple[RunData | None, str]:
    """Opens the data where it is on this machine; returns it, or a line with the reason that it is not.

    Args:
        trainer: The settings of the run.
        is_here: Whether the run is for this machine, where data that cannot be used is an error.

    Raises:
        DataError: The data is there and cannot be used.
    """
    try:
        return trainer.open_data(), ""
    except DataError as error:
        is_absent = isinstance(error, MissingData) or isinstance(error.__cause__, FileNotFoundError | ImportError)
        if is_here and not is_absent:
            raise
        return None, f"data              not opened: {error}"


def _show_plan(trainer: Trainer, sizes: MeshSizes, device_memory: int | None) -> None:
    """Prints the plan, and what fits into the memory of a device where that is known."""
    from ml.training import estimate  # the tracing needs parts of torch that take a second to import

    cluster = trainer.cluster
    planned = estimate.plan(trainer, sizes, cluster)
    print(f"\n{estimate.describe_plan(planned, device_memory)}", flush=True)  # the rest takes longer
    if device_memory is None:
        return
    if sizes.world_size == 1:
        fits = estimate.fits(trainer, cluster, device_memory, planned)
        print(f"\n{estimate.describe_fits(fits, device_memory)}")
        return
    found = list(estimate.candidates(trainer, sizes.world_size, cluster))
    print(f"\n{estimate.describe_candidates(found, device_memory)}")
    for obstacle in estimate.describe_obstacles(found):
        print(f"not {obstacle}")
