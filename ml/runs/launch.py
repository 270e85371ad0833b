"""A run about to start: the rules of its folder, its warnings, and training itself."""

import datetime
import socket
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from ml.building import build_trainer
from ml.config import Config
from ml.config.errors import report
from ml.data import Dataset
from ml.data.tokenizers import Tokenizer
from ml.distributed import Layout, World
from ml.errors import ArgumentError
from ml.runs.branches import Branch, branch_of
from ml.runs.chat_template import kept_chat_template, restore_chat_template
from ml.runs.continuation import continuation
from ml.runs.overrides import overridden, with_advice
from ml.runs.pinning import adopt_found, pinned
from ml.runs.segments import write_segment
from ml.runs.teacher import open_teacher
from ml.runs.tokenizers import (
    fit_initial_weights,
    known_tokenizer,
    lend_tokenizer,
    require_tokenizer_of_run,
    require_tokenizer_of_teacher,
)
from ml.training import Outcome, RunData, RunFolder, StartingPoint, Trainer, train
from ml.training.checkpoints.policy import listed_checkpoints
from ml.training.errors import RunError
from ml.training.guide import Guide
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
        extend: Whether the run in the folder may change, from its next step on.
        data: The open data of the trainer; None opens it for training, and is not enough for a run of a number of
            epochs.

    Raises:
        UserError: The folder holds a run of another configuration, or the mesh or the initial weights do not fit.
    """

    def __init__(
        self,
        config: Config,
        trainer: Trainer,
        run_dir: str | Path | None,
        world: World,
        extend: bool = False,
        data: RunData | None = None,
    ):
        self.world = world
        self.device = world.device
        self.sizes = trainer.mesh_sizes(world.size)
        path = world.first(lambda: _folder(config, run_dir, extend))
        self.folder = RunFolder(path) if world.is_first else ReadOnlyRunFolder(path)
        epoch_sequences = None if data is None else data.training.num_sequences
        self.config = pinned(config, self.folder, world, trainer, epoch_sequences)
        self._data = data
        self.trainer = trainer if self.config is config else build_trainer(self.config)
        lend_tokenizer(self.trainer, path)
        if self.folder.is_begun:
            restore_chat_template(self.trainer.data, path, only_if_missing=True)
        if self.trainer is not trainer:
            adopt_found(self.trainer, trainer)
        trusted = bool(config.components)  # its code was executed, and the copy is held to it by its hash
        self.continuation = world.first(
            lambda: continuation(self.config, self.folder, extend=extend, trust_code=trusted)
        )
        self.initial: StartingPoint | None = None
        self.branch: Branch | None = None
        self.start_lines: list[str] = []
        if self.trainer.initial_weights is not None and not world.first(lambda: has_checkpoints(self.folder)):
            self.initial = self.trainer.initial_weights.open(world)
            if (checkpoint := self.initial.continues) is not None:
                self.branch = world.first(lambda: branch_of(self.config, checkpoint, trust_code=trusted))
            self.start_lines = self._checked(self.initial)

    def _checked(self, initial: StartingPoint) -> list[str]:
        """Compares initial weights with the model on the meta device; returns the lines that describe them."""
        tokenizer = self.world.together(lambda: known_tokenizer(self.trainer.data))
        if tokenizer is not None:
            self.world.together(lambda: fit_initial_weights(self.trainer, initial, tokenizer))
        try:
            return self.world.together(lambda: initial.check(self.trainer.model, self.trainer.num_steps))
        except RunError as error:
            raise self.world.common(RunError(with_advice(str(error), self.config))) from None

    def print_warnings(
        self, dataset: Dataset | None = None, guide: Guide | None = None, *, is_here: bool = True
    ) -> None:
        """Prints the warnings of the configuration and of the preflight to standard error.

        Args:
            dataset: The training data where it is open; None takes what is known of it before.
            guide: The teacher or the reference of the run.
            is_here: Whether the run is for this machine, whose memory is compared then.
        """
        if not self.world.is_first:
            return
        if self.config.warnings:
            print(report(list(self.config.warnings), "warning"), file=sys.stderr)
        if self.initial is not None:
            for line in overridden(self.config, "config.json#"):
                print(f"warning: {line}", file=sys.stderr)
        device = self.device if is_here else None
        for warning in warnings_of(self.trainer, device, dataset, self.sizes, guide):
            print(f"warning: {warning}", file=sys.stderr)

    def write_config(self) -> None:
        """Creates the folder and writes the configuration to it, as the first process."""
        config = self.config
        self.folder.create()
        self.folder.write_config(config.text, config.operative, config.provenance(), config.components)

    def _begin(self, step: int, environment: Mapping[str, Any], stream: TextIO, tokenizer: Tokenizer) -> None:
        """Records a start in the locked folder; killed at any moment, it leaves a folder that the same command resumes.

        The history comes first: until the configuration is written, a start finds the same change again.
        """
        chosen, branch = self.continuation, self.branch
        begins = branch is not None and step == branch.step
        taken = 0 if begins else step  # in this folder
        chosen.require_unchanged(self.folder, taken)
        if chosen.saved is None:
            self.folder.remove_code()
        changed = [*chosen.changed, *chosen.neutral, *(branch.changed if branch is not None and begins else ())]
        self.folder.append_history(describe_start(step, chosen.segment, changed))
        write_segment(self.folder, chosen.segment, self.config, is_new=chosen.is_extension and taken > 0)
        self.write_config()
        if self.initial is not None:
            self.folder.write_imported(self.initial.kept_files())
        template = kept_chat_template(self.trainer.data)
        if template is not None:
            self.folder.write_chat_template(template)
        if problem := self.folder.write_tokenizer(tokenizer):
            print(f"warning: the run keeps no copy of its tokenizer: {problem}", file=sys.stderr)
        self.folder.write_environment(**environment)
        for notice in self.notices:
            print(notice, file=stream, flush=True)

    @property
    def notices(self) -> list[str]:
        """The changes of a resumed or extended run, and those of a branch."""
        branch = "" if self.branch is None else self.branch.notice
        return [text for text in (self.continuation.notice, branch) if text]

    def train(self, stream: TextIO) -> Outcome:
        """Trains from the first step, or from the newest checkpoint in the folder.

        What is wrong with the machine, the teacher or the data is found before anything is written.
        """
        trainer, device, folder, world = self.trainer, self.device, self.folder, self.world
        world.together(lambda: trainer.check_machine(device))
        teacher = world.together(lambda: open_teacher(trainer, device))
        data = world.together(trainer.open_data) if self._data is None else self._data
        world.together(lambda: self._check_tokenizer(data.training.tokenizer))
        self.print_warnings(data.training, teacher)
        hosts = sorted(set(world.gather(socket.gethostname())))
        facts = {"mesh": self.sizes._asdict(), "hosts": hosts, "data": data.describe()}
        peak = world.first(lambda: trainer.peak_flops(device).as_json())
        if world.is_first:
            print(self._described(data), file=lasting(stream), flush=True)
        layout = Layout.of(world, self.sizes)
        begun = partial(
            self._begin, environment={"peak_flops": peak, **facts}, stream=stream, tokenizer=data.training.tokenizer
        )
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

    def _check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Compares the tokenizer of the open data with those of the run, its initial weights and its teacher."""
        if self.folder.is_begun:
            require_tokenizer_of_run(self.folder.path, tokenizer)
        if self.initial is not None:
            fit_initial_weights(self.trainer, self.initial, tokenizer)
        require_tokenizer_of_teacher(self.trainer, tokenizer)

    def _described(self, data: RunData) -> str:
        """Returns one line about the run: its size, its data, its devices and its folder."""
        count = sum(parameter.numel() for parameter in self.trainer.model.parameters())
        tokens = f"{data.training.num_train_tokens:,} tokens to train on"
        where = (
            f"{self.world.size} processes ({self.sizes}), {self.device.type}" if self.world.size > 1 else self.device
        )
        return f"{self.config.name}: {count:,} parameters, {tokens}, {where}, {self.folder.path}"


def has_checkpoints(folder: RunFolder) -> bool:
    """Returns whether there are checkpoints in a run folder, valid or not: then the run no longer needs its source."""
    return bool(listed_checkpoints(folder.checkpoints))


def _folder(config: Config, run_dir: str | Path | None, extend: bool) -> Path:
    """The folder of the run."""
    if extend and run_dir is None:
        raise ArgumentError("{extend} goes with {run_dir}")
    if run_dir is None:
        time = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
        return _unused(Path("runs") / f"{config.name}-{time}")
    if str(run_dir) == "":
        raise ArgumentError("{run_dir} is empty; it must be a path")
    return Path(run_dir)


def _unused(path: Path) -> Path:
    """The path, with a number at its end when two runs start in one second."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
