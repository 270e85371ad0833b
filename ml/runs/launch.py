"""A run about to start: the rules of its folder, its warnings, and training itself."""

import datetime
import socket
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from ml.config import Config
from ml.config.errors import report
from ml.data import Dataset
from ml.distributed import Layout, World
from ml.errors import ArgumentError
from ml.runs.continuation import Continuation, continuation
from ml.runs.run import Run
from ml.runs.segments import write_segment
from ml.runs.teacher import open_teacher
from ml.training import InitialWeights, Outcome, RunData, RunFolder, Trainer, train
from ml.training.history import describe_start
from ml.training.metrics.lasting_stream import lasting
from ml.training.preflight import warnings_of
from ml.training.run_folder import ReadOnlyRunFolder


class Launch:
    """A run whose folder and initial weights were found to fit; nothing is written yet.

    Args:
        config: The configuration.
        trainer: The trainer that it builds.
        run_dir: Folder of the run; None for `runs/<config name>-<UTC time>`.
        world: The processes of the run; all of them make this call.
        init_from: The run whose weights this one starts from.
        init_may_differ: Patterns of the names of weights that may differ or be missing there.
        extend: Whether the run in the folder may change, from its next step on.

    Raises:
        UserError: The folder holds a run of another configuration, or the mesh or the initial weights do not fit.
    """

    def __init__(
        self,
        config: Config,
        trainer: Trainer,
        run_dir: str | Path | None,
        world: World,
        init_from: Run | None = None,
        init_may_differ: Sequence[str] = (),
        extend: bool = False,
    ):
        if init_may_differ and init_from is None:
            raise ArgumentError("{init_may_differ} goes with {init_from}")
        self.config = config
        self.trainer = trainer
        self.world = world
        self.device = world.device
        self.sizes = trainer.mesh_sizes(world.size)
        path, self.continuation = world.first(lambda: _placed(config, run_dir, extend))
        self.folder = RunFolder(path) if world.is_first else ReadOnlyRunFolder(path)
        self.initial = None
        if init_from is not None:
            self.initial = world.together(lambda: _initial(init_from, init_may_differ, self.trainer))

    def print_warnings(self, dataset: Dataset | None = None, *, is_here: bool = True) -> None:
        """Prints the warnings of the configuration and of the preflight to standard error.

        Args:
            dataset: The training data where it is open; None takes what is known of it before.
            is_here: Whether the run is for this machine, whose memory is compared then.
        """
        if not self.world.is_first:
            return
        if self.config.warnings:
            print(report(list(self.config.warnings), "warning"), file=sys.stderr)
        device = self.device if is_here else None
        for warning in warnings_of(self.trainer, device, dataset, self.sizes):
            print(f"warning: {warning}", file=sys.stderr)

    def write_config(self) -> None:
        """Creates the folder and writes the configuration to it, as the first process."""
        config = self.config
        self.folder.create()
        self.folder.write_config(config.text, config.operative, config.provenance(), config.components)

    def _begin(self, step: int, environment: Mapping[str, Any], stream: TextIO) -> None:
        """Records a start in the locked folder; killed at any moment, it leaves a folder that the same command resumes.

        The history comes first: until the configuration is written, a start finds the same change again.
        """
        chosen = self.continuation
        chosen.require_unchanged(self.folder, step)
        if chosen.saved is None:
            self.folder.remove_code()
        self.folder.append_history(describe_start(step, chosen.segment, [*chosen.changed, *chosen.neutral]))
        write_segment(self.folder, chosen.segment, self.config, is_new=chosen.is_extension and step > 0)
        self.write_config()
        self.folder.write_environment(**environment)
        if chosen.notice:
            print(chosen.notice, file=stream, flush=True)

    def train(self, stream: TextIO) -> Outcome:
        """Trains from the first step, or from the newest checkpoint in the folder.

        What is wrong with the machine, the teacher or the data is found before anything is written.
        """
        trainer, device, folder, world = self.trainer, self.device, self.folder, self.world
        world.together(lambda: trainer.check_machine(device))
        teacher = world.together(lambda: open_teacher(trainer, device))
        data = world.together(trainer.open_data)
        self.print_warnings(data.training)
        hosts = sorted(set(world.gather(socket.gethostname())))
        facts = {"mesh": self.sizes._asdict(), "hosts": hosts, "data": data.describe()}
        peak = world.first(lambda: trainer.peak_flops(device).as_json())
        if world.is_first:
            print(self._described(data), file=lasting(stream), flush=True)
        layout = Layout.of(world, self.sizes)
        begun = partial(self._begin, environment={"peak_flops": peak, **facts}, stream=stream)
        return train(
            trainer,
            data,
            folder,
            device,
            initial=self.initial,
            layout=layout,
            teacher=teacher,
            begun=begun,
            stream=stream,
        )

    def _described(self, data: RunData) -> str:
        """Returns one line about the run: its size, its data, its devices and its folder."""
        count = sum(parameter.numel() for parameter in self.trainer.model.parameters())
        tokens = f"{data.training.num_train_tokens:,} tokens to train on"
        where = (
            f"{self.world.size} processes ({self.sizes}), {self.device.type}" if self.world.size > 1 else self.device
        )
        return f"{self.config.name}: {count:,} parameters, {tokens}, {where}, {self.folder.path}"


def _initial(run: Run, may_differ: Sequence[str], trainer: Trainer) -> InitialWeights:
    """The weights to start from; the model is still on the meta device and only compared with them."""
    initial = InitialWeights(run.checkpoint(), tuple(may_differ))
    initial.read(trainer.model, say=lambda _: None)
    return initial


def _placed(config: Config, run_dir: str | Path | None, extend: bool) -> tuple[Path, Continuation]:
    """The folder of the run, and the decision on the run that it holds."""
    if extend and run_dir is None:
        raise ArgumentError("{extend} goes with {run_dir}")
    if run_dir is None:
        time = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
        return _unused(Path("runs") / f"{config.name}-{time}"), Continuation(None)
    if str(run_dir) == "":
        raise ArgumentError("{run_dir} is empty; it must be a path")
    trusted = bool(config.components)  # its code was executed, and the copy is held to it by its hash
    return Path(run_dir), continuation(config, RunFolder(run_dir), extend=extend, trust_code=trusted)


def _unused(path: Path) -> Path:
    """The path, with a number at its end when two runs start in one second."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
