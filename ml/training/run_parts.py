"""Parts of a run, and the conditions under which they fit each other."""

from collections.abc import Iterator

from ml.blocks import BlockSequence
from ml.config import require
from ml.data import Data, ImageFormat
from ml.distributed import Mesh, MeshError, MeshSizes, misfits
from ml.layers.head import LanguageModelHead
from ml.layers.protocol import Drawn
from ml.layers.walk import named_modules
from ml.models import LanguageModel, named_parameters_with_scales
from ml.models.declarations import obstacle_to_allocation
from ml.models.materialize import without_depth
from ml.training.checkpoints.policy import Checkpoints
from ml.training.distillation import Distillation
from ml.training.errors import RunError
from ml.training.evaluation.early_stopping import EarlyStopping
from ml.training.evaluation.lowest import Lowest
from ml.training.evaluation.samples import Samples
from ml.training.evaluation.validation import Validation
from ml.training.evaluation.validation_sets import metrics_of
from ml.training.optimizers import Optimizer, ParameterGroup, group_parameters
from ml.training.optimizers.skip_step import SkipStep
from ml.training.optimizers.weight_average import ExponentialMovingAverage
from ml.training.precision import Precision
from ml.training.preference import DirectPreferenceOptimization
from ml.training.state import BEST_VALIDATION, EARLY_STOPPING


class RunParts:
    """Parts of a run that must fit each other; `Trainer` builds them."""

    model: LanguageModel
    data: Data
    optimizer: Optimizer
    precision: Precision
    validations: dict[str, Validation]
    checkpoints: Checkpoints
    early_stopping: EarlyStopping | None
    distillation: Distillation | None
    preference: DirectPreferenceOptimization | None
    skip_step: SkipStep | None
    weight_average: ExponentialMovingAverage | None
    samples: Samples | None
    mesh: Mesh
    batch_size: int
    micro_batch_size: int
    sequence_length: int
    compile: bool
    cuda_graphs: bool

    def require_that_parts_fit(self) -> None:
        """Checks all parts but the mesh, which fits a number of processes.

        Raises:
            ConfigError: Some parts do not fit each other.
        """
        self._require_that_all_data_fits()
        self._require_that_preference_fits()
        self._require_that_model_fits()
        self._require_that_optimizer_fits()
        self._require_that_comparisons_are_measured()

    def _require_that_all_data_fits(self) -> None:
        self._require_that_data_fits("data", self.data)
        require(self.data.validation_fraction != 1.0, "data", "holds out everything and leaves nothing to train on")
        for name, validation in self.validations.items():
            if validation.own_data is not None:
                self._require_that_data_fits("validation", validation.own_data, f"{name}: " if name else "")

    def _require_that_model_fits(self) -> None:
        length, longest = self.sequence_length, self.model.max_sequence_length
        fits = longest is None or length <= longest
        require(fits, "sequence_length", f"must be at most {longest}, the positions of the model, not {length}")
        open_depths = without_depth(self.model)
        place = "is in no sequence of blocks: set scaled_normal.num_layers there, or another initialization"
        require(not open_depths, "model", f"scales {', '.join(open_depths[:3])} with the depth, and it {place}")
        obstacle = obstacle_to_allocation(self.model)
        require(obstacle is None, "model", f"cannot leave the meta device: {obstacle}")
        can_compile = any(isinstance(module, BlockSequence) for module in self.model.modules())
        message = "needs a decoder that declares its blocks: derive it from ml.blocks.BlockSequence"
        require(can_compile or not self.compile, "compile", message)
        self._require_that_graphs_can_be_captured()
        trains = any(parameter.requires_grad for parameter in self.model.parameters())
        require(trains, "model", "has nothing to train: every lr_scale is 0")

    def _require_that_graphs_can_be_captured(self) -> None:
        if not self.cuda_graphs:
            return
        drawn = [path for path, module in named_modules(self.model) if isinstance(module, Drawn)]
        require(not drawn, "cuda_graphs", f"repeats one pass, and {', '.join(drawn[:3])} is drawn in each step")
        alone = self.distillation is None and self.preference is None
        require(alone, "cuda_graphs", "cannot be used with Trainer.distillation and Trainer.preference")

    def _require_that_optimizer_fits(self) -> None:
        groups = self.groups()
        problem = self.optimizer.misfit(groups) if groups else None
        require(problem is None, "optimizer", f"does not fit the model: {problem}")
        can_skip = self.skip_step is None or self.optimizer.can_skip
        require(can_skip, "skip_step", f"cannot be used with {type(self.optimizer).__name__}")
        can_round = not self.precision.rounds_stochastically or self.optimizer.can_round
        message = f"cannot be used with stochastic rounding: {type(self.optimizer).__name__} rounds to nearest"
        require(can_round, "optimizer", message)

    def _require_that_comparisons_are_measured(self) -> None:
        of_pairs = {name: (one.own_data or self.data).has_pairs for name, one in self.validations.items()}
        measured = [metric for name, has_pairs in of_pairs.items() for metric in metrics_of(name, has_pairs)]
        if self.weight_average is not None:
            measured += [f"average_{metric}" for metric in measured]
        there = f"; the run measures {', '.join(measured)}" if measured else ": it needs Trainer.validation"
        compared = {BEST_VALIDATION: "checkpoints", EARLY_STOPPING: "early_stopping"}
        for use, lowest in self.lowest().items():
            is_measured = lowest.metric in measured
            require(is_measured, compared[use], f"compares {lowest.metric!r}, which is not measured{there}")

    def _require_that_data_fits(self, parameter: str, data: Data, name: str = "") -> None:
        problem = self.misfit_of(data)
        require(problem is None, parameter, f"{name}does not fit the model: {problem}")

    def _require_that_preference_fits(self) -> None:
        if self.preference is None:
            return
        pairs = "needs pairs of answers: set Trainer.data = @PreferenceData"
        require(self.data.has_pairs, "preference", pairs)
        require(self.distillation is None, "preference", "and Trainer.distillation cannot both be set")
        head = self.model.head
        is_known = isinstance(head, LanguageModelHead)
        require(is_known, "preference", f"needs a LanguageModelHead, not {type(head).__name__}")
        has_other_terms = self.model.multi_token is not None or (is_known and head.z_loss > 0.0)
        message = "has no other terms: set LanguageModel.multi_token = None and LanguageModelHead.z_loss = 0.0"
        require(not has_other_terms, "preference", message)

    def misfit_of(self, data: Data) -> str | None:
        """Returns why data does not fit the model, as far as known before it is opened; None if it fits."""
        tokens, vocabulary = data.vocab_size, self.model.vocab_size
        if tokens is not None and tokens > vocabulary:
            return f"its tokens go up to {tokens - 1}, and LanguageModel.vocab_size is {vocabulary}"
        if data.separates_documents and (obstacle := self.model.obstacle_to_documents):
            return f"it separates the documents of a sequence, and {obstacle}"
        if data.has_pairs and self.preference is None:
            return "it has pairs of answers: set Trainer.preference = @DirectPreferenceOptimization"
        return data.misfit(self.image_format)

    @property
    def image_format(self) -> ImageFormat | None:
        """Format of the images that the model takes; None for a text model."""
        shape = self.model.image_shape
        if self.model.image_token_id is None or shape is None:
            return None
        return ImageFormat(self.model.image_token_id, self.model.tokens_per_image, shape)

    def mesh_sizes(self, num_processes: int) -> MeshSizes:
        """Returns the sizes of the mesh of a number of processes.

        Raises:
            RunError: The mesh does not fit the number of processes, the batch or the model.
        """
        try:
            sizes = self.mesh.sizes(num_processes)
        except MeshError as error:
            raise RunError(str(error)) from error
        self.require_fit(sizes)
        return sizes

    def require_fit(self, sizes: MeshSizes) -> None:
        """Checks that a mesh fits the batch and the model.

        Raises:
            RunError: It does not.
        """
        num_parts = sizes.num_data_ranks
        if self.batch_size % num_parts:
            raise RunError(
                f"Trainer.batch_size ({self.batch_size}) is not divisible by the {num_parts} data ranks of the mesh "
                f"(data_replicate {sizes.data_replicate} x data_shard {sizes.data_shard})"
            )
        part = self.batch_size // num_parts
        if self.micro_batch_size < part and part % self.micro_batch_size:
            size = self.micro_batch_size
            raise RunError(f"Trainer.micro_batch_size ({size}) does not divide the {part} sequences of a data rank")
        problems = [*misfits(self.model, self.mesh, sizes), *self._mesh_misfits(sizes)]
        if problems:
            raise RunError("\n".join(problems))

    def _mesh_misfits(self, sizes: MeshSizes) -> Iterator[str]:
        """Yields why training, other than the model, does not fit a mesh."""
        if self.sequence_length % sizes.context:
            yield f"Trainer.sequence_length ({self.sequence_length}) is not divisible by Mesh.context ({sizes.context})"
        stretch = self.sequence_length // sizes.context
        if self.mesh.sequence and stretch % sizes.tensor:
            tokens = f"Trainer.sequence_length ({self.sequence_length})"
            if sizes.context > 1:
                tokens += f" / Mesh.context ({sizes.context})"
            yield f"{tokens} is not divisible by Mesh.tensor ({sizes.tensor}), which Mesh.sequence needs"
        if sizes.pipeline > 1:
            part, schedule = self.batch_size // sizes.num_data_ranks, type(self.mesh.schedule).__name__
            if problem := self.mesh.schedule.misfit(-(-part // self.micro_batch_size), sizes.pipeline):
                yield f"{schedule} {problem}; see Trainer.micro_batch_size"
            if self.compile and self.mesh.schedule.splits_backward:
                yield f"{schedule} does not work with compiled blocks: Trainer.compile must be False"
            if self.distillation is not None:
                yield f"Trainer.distillation does not work in a pipeline: Mesh.pipeline ({sizes.pipeline}) must be 1"
        if self.cuda_graphs and sizes.world_size > 1:
            yield f"Trainer.cuda_graphs is for a single process, not for {sizes.world_size}"
        for name in ("pipeline", "context", "tensor"):
            if self.preference is not None and (size := getattr(sizes, name)) > 1:
                yield f"Trainer.preference needs the whole sequence and model: Mesh.{name} ({size}) must be 1"
        for name in ("pipeline", "context", "tensor"):
            if self.samples is not None and (size := getattr(sizes, name)) > 1:
                yield f"Trainer.samples needs the whole model in each process: Mesh.{name} ({size}) must be 1"

    def lowest(self) -> dict[str, Lowest]:
        """Returns the lowest values of validation metrics before the first step, by their use."""
        uses = {BEST_VALIDATION: self.checkpoints.start()}
        if self.early_stopping is not None:
            uses[EARLY_STOPPING] = self.early_stopping.start()
        return {use: lowest for use, lowest in uses.items() if lowest is not None}

    def groups(self) -> list[ParameterGroup]:
        """Returns the trained parameters of `model`, on the meta device, grouped by lr_scale and weight decay."""
        return group_parameters(named_parameters_with_scales(self.model))
