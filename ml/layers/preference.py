"""Losses of preferences: pairs of answers, of which one is preferred, against a frozen reference model."""

from collections.abc import Callable
from typing import Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ml.layers.loss import LossSums
from ml.targets import IGNORED

PreferenceLoss = Literal["sigmoid", "ipo"]


class PairScores(NamedTuple):
    """Log-probabilities of the answers of each pair, float32.

    Attributes:
        chosen: (B, P), of the preferred answers.
        rejected: (B, P), of the others.
        is_pair: (B, P), false where a row has fewer pairs.
    """

    chosen: Tensor
    rejected: Tensor
    is_pair: Tensor

    @classmethod
    def of(cls, log_probabilities: Tensor, targets: Tensor, documents: Tensor, num_pairs: int, is_mean: bool) -> Self:
        """Sums the log-probabilities of the targets of each document.

        Args:
            log_probabilities: (B, T), of the targets.
            targets: (B, T), `IGNORED` where a token is not of an answer.
            documents: (B, T); documents 2k and 2k + 1 of a row are the preferred and the other side of its pair k.
            num_pairs: Largest number of pairs of a row, P.
            is_mean: Takes the mean over the tokens of an answer instead of the sum.
        """
        sides = torch.arange(2 * num_pairs, device=documents.device)
        belongs = (documents[..., None] == sides) & (targets != IGNORED)[..., None]  # (B, T, 2 P)
        counts = belongs.sum(1)
        sums = log_probabilities[..., None].where(belongs, 0.0).sum(1)
        scores = (sums / counts.clamp(min=1) if is_mean else sums).unflatten(1, (num_pairs, 2))
        return cls(scores[..., 0], scores[..., 1], (counts > 0).unflatten(1, (num_pairs, 2)).all(-1))


class Preference(NamedTuple):
    """Settings of a preference loss, and the scores of the reference for the same pairs.

    Attributes:
        loss: Name of the loss.
        beta: Strength with which the model is kept close to the reference.
        label_smoothing: Assumed probability that a label is wrong.
        num_pairs: Largest number of pairs of a row.
        reference: Scores of the reference.
    """

    loss: PreferenceLoss
    beta: float
    label_smoothing: float
    num_pairs: int
    reference: PairScores

    def scores(self, log_probabilities: Tensor, targets: Tensor, documents: Tensor) -> PairScores:
        """Returns the scores that the loss compares, from (B, T) each, as in `PairScores.of`."""
        return PairScores.of(log_probabilities, targets, documents, self.num_pairs, compares_means(self.loss))


def compares_means(loss: PreferenceLoss) -> bool:
    """Returns True for a loss of the mean log-probability of an answer's tokens, not of their sum."""
    return loss == "ipo"


def preference_sums(policy: PairScores, preference: Preference) -> LossSums:
    """Sums of the loss over pairs: `num_tokens` counts pairs, and the parts are measurements.

    Let d = (log π(chosen) - log ρ(chosen)) - (log π(rejected) - log ρ(rejected)) for the model π and the reference ρ.
    The loss 'sigmoid' is -(1 - ε) log σ(β d) - ε log σ(-β d) (Rafailov et al., 2023, equation 7, with the label
    smoothing ε of Mitchell, 2023); 'ipo' is (d - 1 / 2β)², with mean log-probabilities of tokens (Azar et al., 2023,
    equation 17). A reward is β (log π - log ρ).
    """
    reference = preference.reference
    chosen, rejected = policy.chosen - reference.chosen, policy.rejected - reference.rejected
    losses = _LOSSES[preference.loss](chosen - rejected, preference.beta, preference.label_smoothing)
    total = losses.where(policy.is_pair, 0.0).sum()
    measured = {
        "reward_margin": preference.beta * (chosen - rejected),
        "reward_accuracy": (chosen > rejected).float(),
        "chosen_reward": preference.beta * chosen,
        "rejected_reward": preference.beta * rejected,
        "chosen_log_probability": policy.chosen,
        "rejected_log_probability": policy.rejected,
    }
    parts = {name: value.detach().where(policy.is_pair, 0.0).sum() for name, value in measured.items()}
    return LossSums(total, total.detach(), policy.is_pair.sum(), parts)


def _sigmoid(difference: Tensor, beta: float, label_smoothing: float) -> Tensor:
    scaled = beta * difference
    return -(1 - label_smoothing) * F.logsigmoid(scaled) - label_smoothing * F.logsigmoid(-scaled)


def _ipo(difference: Tensor, beta: float, label_smoothing: float) -> Tensor:
    return (difference - 1 / (2 * beta)).square()


_LOSSES: dict[PreferenceLoss, Callable[[Tensor, float, float], Tensor]] = {"sigmoid": _sigmoid, "ipo": _ipo}
