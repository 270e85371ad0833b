"""The settings of a run: the model, the data, and the parts that train one on the other."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ml.blocks import BlockSequence
from ml.config import child, configurable, require
from ml.data import Batch, Data, DataError, Dataset, ImageFormat, TextData
from ml.data.sequences.batch_indices import numbers_of_step
from ml.layers.checks import ADDRESSABLE, positive_float
from ml.layers.parameter import adopt_settings
from ml.models import LanguageModel, materialize, named_parameters_with_scales
from ml.models.declarations import obstacle_to_allocation
from ml.models.materialize import without_depth
from ml.training.checkpoints.policy import Checkpoints
from ml.training.distillation import Distillation
from ml.training.evaluation.samples import Samples
from ml.training.evaluation.validation import Validation
from ml.training.evaluation.validation_sets import build_validations, open_sets
from ml.training.metrics.norms import Norms
from ml.training.metrics.peak_flops import PeakFlops, peak_flops
from ml.training.optimizers import AdamW, Optimizer, ParameterGroup, group_parameters
from ml.training.optimizers.skip_step import SkipStep
from ml.training.optimizers.weight_average import ExponentialMovingAverage
from ml.training.precision import Float32, Precision, cast_parameters
from ml.training.profiling.memory_snapshot import MemorySnapshot
from ml.training.profiling.profiler import Profiler
from ml.training.profiling.step_windows import StepWindow
from ml.training.run_data import RunData
from ml.training.schedules import CosineSchedule, Schedule
from ml.training.state import TrainState
from ml.training.trackers import Tracker

_TOKEN_BYTES = 8
_MAX_WORKERS = 1024


@configurable
class Trainer:
    """Settings of a run, built on the meta device without touching a file; `train` runs them.

    A trainer is frozen: no attribute can be set once it is built, and running it changes none. `start` makes the state
    that training changes, `open_data` the datasets that it reads.

    Args:
        model: What is trained; its places are `embeddings`, `decoder` and `head`, without a prefix.
        data: What it is trained on: text, or images with captions.
        optimizer: How gradients change the weights.
        schedule: How the learning rate changes over the steps.
        precision: The types in which the model is kept and computes.
        validation: How the model is measured on held-out text: one set, several by name, or None for not at all. The
            names are the scopes: `{'books': @Validation}` is told what it measures by `books/Validation.data`.
        checkpoints: When the state is saved.
        samples: When the model writes something, and what; None for never.
        distillation: What is learned from another model; None is nothing.
        skip_step: Which steps are not taken, such as `@SkipStep`; None takes all of them.
        weight_average: A mean of the weights that is kept beside them, such as `@ExponentialMovingAverage`.
        trackers: Where metrics are shown besides the folder of the run.
        norms: Which norms are logged place by place; None is the norm of all gradients alone.
        profiler: Records the operations of a few steps; None is of none.
        memory_snapshot: Records the allocations on a GPU in a few steps; None is of none.
        num_steps: Optimizer steps of the whole run.
        batch_size: Sequences of one optimizer step.
        micro_batch_size: Sequences that go through the model at once; None for all of them. It changes memory and
            speed, and the result only by rounding; but a router's loss is that of each part.
        sequence_length: Tokens of a sequence that are predicted.
        max_grad_norm: Gradients with a larger global norm are scaled down to it; None for no limit.
        seed: Decides the initial weights, the order of the data and the dropout.
        log_every: Steps between two lines of `metrics.jsonl`.
        peak_flops: Floating-point operations a second of one device, for the utilization that is logged; None is what
            is listed for it, or else measured.
        compile: Whether each block is compiled by `torch.compile`.
        num_loader_workers: Threads that make batches while the device works; 0 makes each when it is needed. The
            batches are the same for any number.
    """

    def __init__(
        self,
        *,
        model: Callable[..., LanguageModel] = LanguageModel,
        data: Callable[..., Data] = TextData,
        optimizer: Callable[..., Optimizer] = AdamW,
        schedule: Callable[..., Schedule] = CosineSchedule,
        precision: Callable[..., Precision] = Float32,
        validation: Callable[..., Validation] | dict[str, Callable[..., Validation]] | None = Validation,
        checkpoints: Callable[..., Checkpoints] = Checkpoints,
        distillation: Callable[..., Distillation] | None = None,
        skip_step: Callable[..., SkipStep] | None = None,
        weight_average: Callable[..., ExponentialMovingAverage] | None = None,
        trackers: Sequence[Callable[..., Tracker]] = (),
        norms: Callable[..., Norms] | None = None,
        profiler: Callable[..., Profiler] | None = None,
        memory_snapshot: Callable[..., MemorySnapshot] | None = None,
        samples: Callable[..., Samples] | None = None,
        num_steps: int = 1000,
        batch_size: int = 16,
        micro_batch_size: int | None = None,
        sequence_length: int = 256,
        max_grad_norm: float | None = 1.0,
        seed: int = 0,
        log_every: int = 10,
        peak_flops: float | None = None,
        compile: bool = False,
        num_loader_workers: int = 1,
    ):
        counts = {"num_steps": num_steps, "batch_size": batch_size, "sequence_length": sequence_length}
        for name, count in {**counts, "log_every": log_every}.items():
            require(count > 0, name, f"must be positive, not {count}")
        self.micro_batch_size = batch_size if micro_batch_size is None else micro_batch_size
        fits = self.micro_batch_size > 0 and batch_size % self.micro_batch_size == 0
        require(fits, "micro_batch_size", f"must divide Trainer.batch_size ({batch_size}), not be {micro_batch_size}")
        step_fits = batch_size * (sequence_length + 1) * _TOKEN_BYTES <= ADDRESSABLE
        message = f"times Trainer.sequence_length ({sequence_length}) is more tokens than memory can hold: {batch_size}"
        require(step_fits, "batch_size", message)
        require(max_grad_norm is None or max_grad_norm > 0.0, "max_grad_norm", f"must be positive, not {max_grad_norm}")
        require(seed >= 0, "seed", f"must not be negative: {seed}")
        if peak_flops is not None:
            positive_float("peak_flops", peak_flops)
        in_range = 0 <= num_loader_workers <= _MAX_WORKERS
        require(in_range, "num_loader_workers", f"must be from 0 to {_MAX_WORKERS}, not {num_loader_workers}")
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self.max_grad_norm = max_grad_norm
        self.seed = seed
        self.log_every = log_every
        self.stated_peak_flops = peak_flops
        self.compile = compile
        self.num_loader_workers = num_loader_workers
        self.model = model()
        adopt_settings(self.model)
        self.data = child("data", data)
        self.optimizer = child("optimizer", optimizer)
        self.schedule = child("schedule", schedule, num_steps)
        self.precision = child("precision", precision)
        self.validations = build_validations(validation)
        self.checkpoints = child("checkpoints", checkpoints)
        self.distillation = None if distillation is None else child("distillation", distillation)
        self.skip_step = None if skip_step is None else child("skip_step", skip_step)
        self.weight_average = None if weight_average is None else child("weight_average", weight_average)
        self.trackers = [child(f"tracker_{index}", tracker) for index, tracker in enumerate(trackers)]
        self.norms = None if norms is None else child("norms", norms)
        self.profiler = None if profiler is None else child("profiler", profiler, num_steps)
        window = memory_snapshot
        self.memory_snapshot = None if window is None else child("memory_snapshot", window, num_steps)
        self.samples = None if samples is None else child("samples", samples)
        cast_parameters(self.model, self.precision.parameter_dtype)
        self._require_that_parts_fit()
        self._is_frozen = True

    def __setattr__(self, name: str, value: Any) -> None:
        if vars(self).get("_is_frozen", False):
            raise AttributeError(f"Trainer.{name} is a setting and cannot be changed after the trainer is built")
        super().__setattr__(name, value)

    def _require_that_parts_fit(self) -> None:
        self._require_that_data_fits("data", self.data)
        require(
            self.data.validation_fraction != 1.0, "data", "holds out all that there is, and leaves nothing to train on"
        )
        for name, validation in self.validations.items():
            if validation.own_data is not None:
                self._require_that_data_fits("validation", validation.own_data, f"{name}: " if name else "")
        length, longest = self.sequence_length, self.model.max_sequence_length
        fits = longest is None or length <= longest
        require(fits, "sequence_length", f"must be at most {longest}, the positions of the model, not {length}")
        open_depths = without_depth(self.model)
        place = "stands in no sequence of blocks: set scaled_normal.num_layers there, or another initialization"
        require(not open_depths, "model", f"scales {', '.join(open_depths[:3])} with the depth, and it {place}")
        obstacle = obstacle_to_allocation(self.model)
        require(obstacle is None, "model", f"cannot leave the meta device: {obstacle}")
        can_compile = any(isinstance(module, BlockSequence) for module in self.model.modules())
        message = "needs a decoder that declares its blocks: derive it from ml.blocks.BlockSequence"
        require(can_compile or not self.compile, "compile", message)
        trains = any(parameter.requires_grad for parameter in self.model.parameters())
        require(trains, "model", "has nothing to train: every lr_scale is 0")
        problem = self.optimizer.misfit(self.groups()) if trains else None
        require(problem is None, "optimizer", f"does not fit the model: {problem}")
        can_skip = self.skip_step is None or self.optimizer.can_skip
        require(can_skip, "skip_step", f"cannot be used with {type(self.optimizer).__name__}")

    def _require_that_data_fits(self, parameter: str, data: Data, name: str = "") -> None:
        problem = self._misfit(data)
        require(problem is None, parameter, f"{name}does not fit the model: {problem}")

    def _misfit(self, data: Data) -> str | None:
        """Why data does not suit the model; None where it does, as far as that is known before it is opened."""
        tokens, vocabulary = data.vocab_size, self.model.vocab_size
        if tokens is not None and tokens > vocabulary:
            return f"its tokens go up to {tokens - 1}, and LanguageModel.vocab_size is {vocabulary}"
        if data.separates_documents and (obstacle := self.model.obstacle_to_documents):
            return f"it separates the documents of a sequence, and {obstacle}"
        return data.misfit(self.image_format)

    @property
    def image_format(self) -> ImageFormat | None:
        """The images that the model takes, if it takes any."""
        if self.model.image_token_id is None:
            return None
        return ImageFormat(self.model.image_token_id, self.model.tokens_per_image, self.model.image_shape)

    @property
    def windows(self) -> list[StepWindow]:
        """What records a few steps."""
        return [window for window in (self.profiler, self.memory_snapshot) if window is not None]

    def check_machine(self) -> None:
        """Stops before anything is written where the machine lacks what watching the run needs.

        Raises:
            RunError: A library is not installed, or there is no device of the kind.
        """
        for part in (*self.trackers, *self.windows):
            part.check()

    def peak_flops(self, device: torch.device) -> PeakFlops:
        """The peak of a device for the matrix products of the run."""
        return peak_flops(device, self.precision.compute_dtype, self.stated_peak_flops)

    def open_data(self) -> RunData:
        """Reads the data of the run and of its validation sets.

        Raises:
            DataError: It cannot be used, or there is none to validate on.
            RunError: It has no place for the samples that are to be written.
        """
        dataset = self._open(self.data)
        if dataset.num_sequences == 0:
            raise DataError("there is nothing to train on: all of the data is held out")
        validation_sets = open_sets(self.validations, dataset, self._open)
        if self.samples is not None:
            self.samples.check(self.data, self.model)
        return RunData(dataset, validation_sets)

    def _open(self, data: Data) -> Dataset:
        dataset = data.open(self.sequence_length, self.seed, self.image_format)
        if problem := self._misfit(data):  # of files that were not there when the configuration was checked
            raise DataError(f"the data does not fit the model: {problem}")
        return dataset

    def start(self, device: torch.device) -> TrainState:
        """Returns the state before step 1: a copy of the model with initial weights on `device`, no optimizer state."""
        model = materialize(copy.deepcopy(self.model), device, self.seed)
        groups = group_parameters(named_parameters_with_scales(model))
        optimizer = self.optimizer.create(groups)
        if self.compile:
            compile_blocks(model)
        model.train()
        skip_step = None if self.skip_step is None else self.skip_step.start(device)
        average = None if self.weight_average is None else self.weight_average.start(groups)
        nowhere = torch.zeros((), dtype=torch.int64, device=device)
        return TrainState(model, optimizer, groups, nowhere, skip_step, average)

    def groups(self) -> list[ParameterGroup]:
        """The trained parameters of `model`, which have no values, grouped by scale and weight decay."""
        return group_parameters(named_parameters_with_scales(self.model))

    def batches(self, dataset: Dataset, step: int, rank: int = 0, num_ranks: int = 1) -> list[Batch]:
        """The micro-batches that a rank takes in a step.

        Raises:
            DataError: They cannot be read, or hold a token that the model does not have.
        """
        numbers = numbers_of_step(step, self.batch_size, rank, num_ranks)
        batch = dataset.batch(numbers.start, len(numbers)).require_below(self.model.vocab_size)
        return batch.split(self.micro_batch_size)

    def learning_rate(self, step: int) -> float:
        """Before the scales of single parameters."""
        return self.optimizer.learning_rate * self.schedule(step)

    def is_logged(self, step: int) -> bool:
        return step in (1, self.num_steps) or step % self.log_every == 0


def compile_blocks(model: nn.Module) -> None:
    """Compiles the innermost blocks of every sequence on its own: equal blocks then share their code."""
    sequences = [module for module in model.modules() if isinstance(module, BlockSequence)]
    for block in [block for sequence in sequences for block in sequence.blocks]:
        if not isinstance(block, BlockSequence):
            block.compile()
