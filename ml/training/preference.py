"""Direct preference optimization."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ml.config import configurable, require
from ml.data import Batch
from ml.layers.checks import positive_float
from ml.layers.preference import PairScores, Preference, PreferenceLoss, compares_means
from ml.models import LanguageModel
from ml.models.adapters import adapter_weights, without_adapters
from ml.training.checkpoints.reference import CheckpointReference, CheckpointSource
from ml.training.distillation import require_fit
from ml.training.guide import Guide


@configurable(neutral=["reference"])
class DirectPreferenceOptimization:
    """Trains on pairs of answers to prefer one, with a frozen reference (Rafailov et al., 2023, arXiv:2305.18290).

    The loss is a mean over pairs. The reference is the run `reference`, or else the model without its adapters where
    adapters alone are trained, or else the initial weights (`Trainer.initial_weights = @FromRun`).

    Args:
        beta: Strength with which the model is kept close to the reference.
        loss: `'sigmoid'`, or `'ipo'`, which compares mean log-probabilities of tokens (Azar et al., 2023,
            arXiv:2310.12036).
        label_smoothing: Assumed probability that a label is wrong, in [0, 0.5) (conservative DPO); for `'sigmoid'`.
        reference: Folder of the reference's run, which must use the same vocabulary; None as described.
        step: Step of the reference's checkpoint; None for the newest valid one, which is recorded.
        sha256: Hash of the tensors of the reference's checkpoint; None for any, which is recorded.
    """

    def __init__(
        self,
        *,
        beta: float = 0.1,
        loss: PreferenceLoss = "sigmoid",
        label_smoothing: float = 0.0,
        reference: str | None = None,
        step: int | None = None,
        sha256: str | None = None,
    ):
        fits = 0.0 <= label_smoothing < 0.5
        require(fits, "label_smoothing", f"must be at least 0 and below 0.5, not {label_smoothing}")
        require(label_smoothing == 0.0 or loss == "sigmoid", "label_smoothing", "is of the loss 'sigmoid' alone")
        require(step is None or step > 0, "step", f"must be positive, not {step}")
        for name, value in (("step", step), ("sha256", sha256)):
            require(value is None or reference is not None, name, "goes with DirectPreferenceOptimization.reference")
        self.beta = positive_float("beta", beta)
        self.loss = loss
        self.label_smoothing = label_smoothing
        self.reference = reference
        self.source = CheckpointSource(CheckpointReference(Path(reference or ""), step, sha256))

    def pins(self, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """Returns step and hash of the reference's checkpoint, to record; empty if both are set, or there is none.

        Args:
            recorded: The parameters of these settings in the run folder that is resumed; empty for a new run.

        Raises:
            RunError: There is no such checkpoint.
        """
        return {} if self.reference is None else self.source.pins(recorded, recorded.get("reference"))

    def adopt(self, earlier: "DirectPreferenceOptimization") -> None:
        """Takes over the checkpoint that `pins` of these settings, before they were set, has found."""
        self.source.adopt(earlier.source)

    def compare(self, policy: LanguageModel, sequence_length: int, model: LanguageModel | None) -> "ReferenceModel":
        """Freezes a loaded model as the reference of `policy`.

        Args:
            policy: The model that is trained; may be on the meta device.
            sequence_length: Sequence length of the run in tokens.
            model: The reference; None for `policy` without its adapters.

        Raises:
            RunError: The vocabulary or the positions of the reference do not fit the policy.
        """
        if model is not None:
            require_fit(
                model.requires_grad_(False), f"the reference {self.reference or ''}".strip(), policy, sequence_length
            )
        return ReferenceModel(self, model)

    def guided(self, batch: Batch, reference: PairScores) -> Preference:
        """Returns the argument of the model's loss."""
        return Preference(self.loss, self.beta, self.label_smoothing, pairs_per_row(batch), reference)


def trains_adapters_alone(model: LanguageModel) -> bool:
    """Returns True if the trained parameters of a model are those of its adapters."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return trained == adapter_weights(model).keys()


def pairs_per_row(batch: Batch) -> int:
    """Returns the largest number of pairs of a sequence, at least 1."""
    return max([1, *batch.pairs_per_sequence])


class ReferenceModel(Guide):
    """A frozen model whose log-probabilities the trained one is compared with.

    Args:
        settings: The settings.
        model: The model; None for the trained one without its adapters.
    """

    model: LanguageModel | None

    def __init__(self, settings: DirectPreferenceOptimization, model: LanguageModel | None):
        self.settings = settings
        self.model = model

    def num_units(self, batch: Batch) -> int:
        return batch.num_pairs

    def inputs(self, batch: Batch, model: LanguageModel) -> dict[str, Any]:
        if self.model is not None:
            return {"preference": self.settings.guided(batch, self._scores(batch, self.model))}
        was_training = model.training
        model.eval()  # without dropout
        try:
            with without_adapters(model):
                return {"preference": self.settings.guided(batch, self._scores(batch, model))}
        finally:
            model.train(was_training)

    @torch.no_grad()
    def _scores(self, batch: Batch, model: LanguageModel) -> PairScores:
        assert batch.documents is not None  # the sides of each pair
        log_probabilities = model.log_probabilities(batch.tokens, batch.targets, documents=batch.documents)
        is_mean = compares_means(self.settings.loss)
        return PairScores.of(log_probabilities, batch.targets, batch.documents, pairs_per_row(batch), is_mean)
