"""Settings of a run: the model, the data, and the components of training."""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ml.config import Neutral, child, configurable, require
from ml.data import Batch, Data, DataError, Dataset, TextData
from ml.data.sequences.batch_indices import sequence_indices
from ml.distributed import Layout, Mesh, World, parallelize
from ml.distributed.estimate.cluster import Cluster
from ml.distributed.initialization import materialize_shards
from ml.layers.checks import ADDRESSABLE, positive, positive_float
from ml.layers.parameter import adopt_settings
from ml.models import LanguageModel, named_parameters_with_scales
from ml.models.declarations import couples_sequences, draws_noise
from ml.models.kernels import Pass, obstacle_to_kernels
from ml.training.checkpoints.initial_weights import InitialWeights
from ml.training.checkpoints.policy import Checkpoints
from ml.training.device_limits import obstacles_on
from ml.training.distillation import Distillation
from ml.training.durations import parse_duration
from ml.training.errors import RunError
from ml.training.evaluation.early_stopping import EarlyStopping
from ml.training.evaluation.lowest import Lowest
from ml.training.evaluation.samples import Samples
from ml.training.evaluation.validation import Validation
from ml.training.evaluation.validation_sets import build_validations, open_sets
from ml.training.gradient_graphs import GradientGraphs
from ml.training.metrics.norms import Norms
from ml.training.metrics.peak_flops import PeakFlops, peak_flops
from ml.training.optimizers import AdamW, Optimizer, group_parameters
from ml.training.optimizers.skip_step import SkipStep
from ml.training.optimizers.weight_average import ExponentialMovingAverage
from ml.training.precision import Float32, Precision, cast_parameters
from ml.training.preference import DirectPreferenceOptimization
from ml.training.profiling.memory_snapshot import MemorySnapshot
from ml.training.profiling.profiler import Profiler
from ml.training.profiling.step_windows import StepWindow
from ml.training.run_data import RunData
from ml.training.run_length import RunLength
from ml.training.run_parts import RunParts
from ml.training.schedules import CosineSchedule, Schedule
from ml.training.state import EARLY_STOPPING, TrainState
from ml.training.trackers import Tracker

if TYPE_CHECKING:
    from ml.distributed.pipeline.pipeline import Pipeline

_TOKEN_BYTES = 8
_MAX_WORKERS = 1024


def _draws_no_noise(trainer: "Trainer") -> bool:
    return not draws_noise(trainer.model)


def _treats_sequences_alone(trainer: "Trainer") -> bool:
    return not (draws_noise(trainer.model) or couples_sequences(trainer.model))


def _never_stops_early(trainer: "Trainer") -> bool:
    return trainer.early_stopping is None


_WATCHING = ["checkpoints", "trackers", "norms", "profiler", "memory_snapshot", "samples", "log_every"]
_STOPPING = ["stop_at_step", "stop_after"]
_NEUTRAL = {
    **dict.fromkeys([*_WATCHING, *_STOPPING, "peak_flops", "num_loader_workers", "cluster"], Neutral()),
    "mesh": Neutral(rounding=True, only_if=_treats_sequences_alone),
    "validation": Neutral(only_if=_never_stops_early),
    "compile": Neutral(rounding=True, only_if=_draws_no_noise),
    "cuda_graphs": Neutral(),
    "micro_batch_size": Neutral(rounding=True, only_if=_treats_sequences_alone),
}


@configurable(neutral=_NEUTRAL)
class Trainer(RunParts):
    """Settings of a run, built on the meta device without touching a file; `train` runs them.

    A trainer is frozen: no attribute can be set once it is built, and training changes none. `start` creates the
    training state, `open_data` the datasets.

    Args:
        model: The model; its scopes are `embeddings`, `decoder` and `head`, without a prefix.
        data: Training data: text, or images with captions.
        optimizer: Optimizer of the trained parameters.
        schedule: Learning rate schedule.
        precision: Dtypes of the weights and of the computation.
        validation: Validation on held-out text: one set, several sets by name, or None for no validation. Names are
            scopes: `{'books': @Validation}` measures `books/Validation.data`.
        checkpoints: Interval and retention of checkpoints.
        early_stopping: End of a run whose validation no longer improves, `@EarlyStopping`; None takes all steps.
        initial_weights: What a new run starts from, `@FromRun`; None for random initialization.
        samples: Text samples during training; None for none.
        distillation: Distillation from a trained model; None for none.
        preference: Training on pairs of answers, `@DirectPreferenceOptimization`; None for the cross entropy.
        skip_step: Skipping of steps with a loss spike, `@SkipStep`; None takes every step.
        weight_average: Running average of the weights, `@ExponentialMovingAverage`; None for none.
        trackers: Trackers that receive the metrics besides `metrics.jsonl`.
        norms: Norms logged per module; None logs the global gradient norm only.
        profiler: Profile of the operations of a few steps; None for none.
        memory_snapshot: Snapshot of the GPU allocations in a few steps; None for none.
        mesh: Arrangement of the processes of the run. Changes the result by rounding only, except for dropout and for
            the load-balancing loss of routers, as `micro_batch_size` does.
        cluster: Machines that `--dry_run` plans for.
        num_steps: Number of optimizer steps of the run; None with `num_epochs`.
        num_epochs: Length of the run in epochs of the data instead, rounded up to whole steps of `batch_size`
            sequences; None with `num_steps`. An epoch of a mixture has as many sequences as its parts together.
        epoch_sequences: Number of sequences in an epoch, with `num_epochs`. It is found and recorded when the run
            starts; None before.
        batch_size: Number of sequences per optimizer step.
        micro_batch_size: Largest number of sequences per forward pass of a process (gradient accumulation); None for
            all of its part of the batch. Changes the result by rounding only, except for dropout, which draws other
            numbers, and for the load-balancing loss of routers, which is per micro-batch.
        sequence_length: Number of predicted tokens per sequence.
        max_grad_norm: Clips gradients to this global norm; None does not clip.
        stop_at_step: Step after which the process stops with a checkpoint and leaves the rest of `num_steps`, with an
            unchanged schedule, to the same command with a later value; None for no stop.
        stop_after: Time after which the process stops so, such as '90m' or '3h'; counts from the start of each process.
            None for no limit.
        seed: Seed of the initial weights, the order of the data and dropout.
        log_every: Steps between two lines of `metrics.jsonl`.
        peak_flops: Peak FLOPs per second of one device, for the logged utilization (MFU); None looks it up for known
            devices, or else measures it.
        compile: Whether to compile each block with `torch.compile`, and in a single process
            the head with the loss.
        cuda_graphs: Whether to replay the forward and backward pass of a micro-batch as a CUDA graph, which saves the
            launches of small operations. In a single process on a GPU, where the host decides nothing in a pass.
        num_loader_workers: Number of threads that load batches in the background; 0 loads each batch when needed. Does
            not change the batches.
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
        early_stopping: Callable[..., EarlyStopping] | None = None,
        initial_weights: Callable[..., InitialWeights] | None = None,
        distillation: Callable[..., Distillation] | None = None,
        preference: Callable[..., DirectPreferenceOptimization] | None = None,
        skip_step: Callable[..., SkipStep] | None = None,
        weight_average: Callable[..., ExponentialMovingAverage] | None = None,
        trackers: Sequence[Callable[..., Tracker]] = (),
        norms: Callable[..., Norms] | None = None,
        profiler: Callable[..., Profiler] | None = None,
        memory_snapshot: Callable[..., MemorySnapshot] | None = None,
        samples: Callable[..., Samples] | None = None,
        mesh: Callable[..., Mesh] = Mesh,
        cluster: Callable[..., Cluster] = Cluster,
        num_steps: int | None = 1000,
        num_epochs: float | None = None,
        epoch_sequences: int | None = None,
        batch_size: int = 16,
        micro_batch_size: int | None = None,
        sequence_length: int = 256,
        max_grad_norm: float | None = 1.0,
        stop_at_step: int | None = None,
        stop_after: str | None = None,
        seed: int = 0,
        log_every: int = 10,
        peak_flops: float | None = None,
        compile: bool = False,
        cuda_graphs: bool = False,
        num_loader_workers: int = 1,
    ):
        for name, count in {"batch_size": batch_size, "log_every": log_every}.items():
            require(count > 0, name, f"must be positive, not {count}")
        self.length = RunLength.of(num_steps, num_epochs, epoch_sequences, batch_size)
        num_steps = self.length.num_steps
        positive("sequence_length", sequence_length)
        self.micro_batch_size = batch_size if micro_batch_size is None else micro_batch_size
        fits = self.micro_batch_size > 0 and batch_size % self.micro_batch_size == 0
        require(fits, "micro_batch_size", f"must divide Trainer.batch_size ({batch_size}), not be {micro_batch_size}")
        step_fits = batch_size * (sequence_length + 1) * _TOKEN_BYTES <= ADDRESSABLE
        message = f"times Trainer.sequence_length ({sequence_length}) is more tokens than memory can hold: {batch_size}"
        require(step_fits, "batch_size", message)
        require(max_grad_norm is None or max_grad_norm > 0.0, "max_grad_norm", f"must be positive, not {max_grad_norm}")
        at_least_one = stop_at_step is None or stop_at_step > 0
        require(at_least_one, "stop_at_step", f"must be positive, not {stop_at_step}")
        self.stop_at_step = stop_at_step
        self.stop_after = None if stop_after is None else parse_duration("stop_after", stop_after)
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
        self.cuda_graphs = cuda_graphs
        self.num_loader_workers = num_loader_workers
        self.model = model()
        adopt_settings(self.model)
        self.data = child("data", data)
        self.optimizer = child("optimizer", optimizer)
        self.schedule = child("schedule", schedule, num_steps)
        self.precision = child("precision", precision)
        self.validations = build_validations(validation)
        self.checkpoints = child("checkpoints", checkpoints)
        self.early_stopping = None if early_stopping is None else child("early_stopping", early_stopping)
        self.initial_weights = None if initial_weights is None else child("initial_weights", initial_weights)
        self._lend_tokenizers()
        self.distillation = None if distillation is None else child("distillation", distillation)
        self.preference = None if preference is None else child("preference", preference)
        self.skip_step = None if skip_step is None else child("skip_step", skip_step)
        self.weight_average = None if weight_average is None else child("weight_average", weight_average)
        self.trackers = [child(f"tracker_{index}", tracker) for index, tracker in enumerate(trackers)]
        self.norms = None if norms is None else child("norms", norms)
        self.profiler = None if profiler is None else child("profiler", profiler, num_steps)
        window = memory_snapshot
        self.memory_snapshot = None if window is None else child("memory_snapshot", window, num_steps)
        self.samples = None if samples is None else child("samples", samples)
        self.mesh = child("mesh", mesh)
        self.cluster = child("cluster", cluster)
        cast_parameters(self.model, self.precision.parameter_dtype)
        self.require_that_parts_fit()
        self._is_frozen = True

    def __setattr__(self, name: str, value: Any) -> None:
        if vars(self).get("_is_frozen", False):
            raise AttributeError(f"Trainer.{name} is a setting and cannot be changed after the trainer is built")
        super().__setattr__(name, value)

    def _lend_tokenizers(self) -> None:
        """Gives data without its own tokenizer that of the training data, and this that of the run it starts from."""
        if self.initial_weights is not None:
            self.data.lend_tokenizer(self.initial_weights.tokenizer)
        for validation in self.validations.values():
            if validation.own_data is not None:
                validation.own_data.lend_tokenizer(lambda: self.data.tokenizer)

    @property
    def windows(self) -> list[StepWindow]:
        """The configured windows: profiler and memory snapshot."""
        return [window for window in (self.profiler, self.memory_snapshot) if window is not None]

    def check_machine(self, device: torch.device) -> None:
        """Checks before anything is written that the machine can run the model, trackers, profiler and memory snapshot.

        Args:
            device: The device to train on.

        Raises:
            RunError: The device cannot run the model, a library is not installed, or there is no CUDA device.
        """
        self.check_device(device)
        for tracker in self.trackers:
            tracker.check()
        for window in self.windows:
            window.check()

    def check_device(self, device: torch.device) -> None:
        """Checks that a device can run the model.

        Args:
            device: The device to train on.

        Raises:
            RunError: It cannot.
        """
        obstacles = obstacles_on(self.model, device, self.precision.compute_dtype)
        if obstacle := obstacle_to_kernels(self.model, self.attention_pass(device.type)):
            obstacles = [*obstacles, obstacle]
        if self.cuda_graphs and device.type != "cuda":
            obstacles = [*obstacles, f"Trainer.cuda_graphs needs a CUDA device, and this one is {device.type}"]
        if obstacles:
            raise RunError("\n".join(obstacles))

    def attention_pass(self, device: str) -> Pass:
        """Returns what decides the attention kernels of training on a type of device, such as "cuda"."""
        has_documents = self.data.separates_documents
        return Pass(self.sequence_length, has_documents, device, self.precision.compute_dtype)

    def peak_flops(self, device: torch.device) -> PeakFlops:
        """Returns the peak FLOPs of a device for the matrix products of the run."""
        return peak_flops(device, self.precision.compute_dtype, self.stated_peak_flops)

    def open_data(self) -> RunData:
        """Opens the training data and the validation sets.

        Returns:
            The open data.

        Raises:
            DataError: The data cannot be used, or there is no held-out text to validate on.
            RunError: The prompts of the samples cannot be encoded or continued.
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
        if problem := self.misfit_of(data):  # of files that were not there when the configuration was checked
            raise DataError(f"the data does not fit the model: {problem}")
        return dataset

    def start(self, device: torch.device, layout: Layout | None = None, given: Collection[str] = ()) -> TrainState:
        """Creates the state before step 1, with initial weights and initial optimizer state on `device`.

        Args:
            device: The device of this process.
            layout: The mesh, a collective call; None for a single process.
            given: Names of parameters that are not drawn, because all their values are read afterward.
        """
        layout = Layout(World(device=device)) if layout is None else layout
        model, pipeline = self._allocated(device, layout, given)
        return self.start_with(model, layout, pipeline)

    def allocate(self, device: torch.device, given: Collection[str] = ()) -> LanguageModel:
        """Creates the model with initial weights on a device, without the state of an optimizer.

        Args:
            device: The device.
            given: Names of parameters that are not drawn, because all their values are read afterward.
        """
        return self._allocated(device, Layout(World(device=device)), given)[0]

    def _allocated(
        self, device: torch.device, layout: Layout, given: Collection[str]
    ) -> tuple[LanguageModel, "Pipeline | None"]:
        model = copy.deepcopy(self.model)
        pipeline = parallelize(model, layout, self.mesh, compile=self.compile)
        is_offloaded = self.mesh.sharding.offload and layout.fully_sharded is not None
        weights_on = torch.device("cpu") if is_offloaded else None
        materialize_shards(model, layout.world, device, self.seed, weights_on=weights_on, given=given)
        return model, pipeline

    def start_with(self, model: LanguageModel, layout: Layout, pipeline: "Pipeline | None") -> TrainState:
        """Creates the state before step 1 of a model that is allocated and on the mesh.

        Args:
            model: The model, which the state takes over.
            layout: The mesh.
            pipeline: Computes its gradients, from `parallelize`; None for one without stages.
        """
        groups = group_parameters(named_parameters_with_scales(model))
        optimizer = self.optimizer.create(groups)
        model.train()
        device = layout.device
        skip_step = None if self.skip_step is None else self.skip_step.start(device)
        average = None if self.weight_average is None else self.weight_average.start(groups)
        nowhere = torch.zeros((), dtype=torch.int64, device=device)
        graphs = GradientGraphs(device) if self.cuda_graphs else None
        parts = (skip_step, average, layout, pipeline, graphs)
        seed = self.seed if self.precision.rounds_stochastically else None
        return TrainState(model, optimizer, groups, nowhere, *parts, lowest=self.lowest(), rounding_seed=seed)

    def is_end(self, step: int, lowest: Mapping[str, Lowest]) -> bool:
        """Returns True if no step is taken after `step`.

        Args:
            step: The number of steps taken.
            lowest: The lowest values of validation metrics so far, as from `lowest`.
        """
        stops = self.early_stopping is not None and self.early_stopping.is_reached(lowest[EARLY_STOPPING])
        return stops or step >= self.num_steps

    def batches(
        self, dataset: Dataset, step: int, rank: int = 0, num_ranks: int = 1, consumed: int | None = None
    ) -> list[Batch]:
        """Returns the micro-batches of a rank in a step.

        Args:
            dataset: The training dataset.
            step: The step, from 1.
            rank: Index of the process.
            num_ranks: Number of processes that share the batch.
            consumed: Sequences of all earlier steps; None if each had `batch_size` of them.

        Raises:
            DataError: They cannot be read, or contain a token outside the vocabulary of the model.
        """
        consumed = (step - 1) * self.batch_size if consumed is None else consumed
        numbers = sequence_indices(consumed, self.batch_size, rank, num_ranks)
        batch = dataset.batch(numbers.start, len(numbers)).require_below(self.model.vocab_size)
        return batch.split(self.micro_batch_size)

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of a step, before the lr_scale of a parameter."""
        return self.optimizer.learning_rate * self.schedule(step)

    def is_logged(self, step: int) -> bool:
        """Returns True if a step is written to `metrics.jsonl`; the first and the last always are."""
        return step in (1, self.num_steps) or step % self.log_every == 0
