"""Losses of preferences against the formulas of the papers, by loops in float64."""

import math

import pytest
import torch

from ml.layers.preference import PairScores, Preference, compares_means, preference_sums
from ml.targets import IGNORED

BETA = 0.3
CASES = {"sigmoid": ("sigmoid", 0.0), "smoothed": ("sigmoid", 0.2), "ipo": ("ipo", 0.0)}

# Two rows: one with two pairs and padding, one with one pair. Negative targets are ignored.
DOCUMENTS = torch.tensor([[0, 0, 1, 2, 2, 3, 3, -1], [0, 0, 0, 1, 1, 1, 1, 1]])
TARGETS = torch.tensor([[4, 5, 6, IGNORED, 7, 8, 9, IGNORED], [IGNORED, 3, 2, IGNORED, 1, 5, 6, 2]])
PAIRS = [(0, 0), (0, 1), (1, 0)]


def by_hand(policy, reference, loss, smoothing):
    """Returns the loss, accuracy and margin summed over pairs, and the gradient of the loss."""
    gradient = torch.zeros_like(policy)
    total = accuracy = margins = 0.0
    for row, pair in PAIRS:
        ratio, weights = 0.0, {}
        for side, sign in ((2 * pair, 1.0), (2 * pair + 1, -1.0)):
            places = [t for t in range(8) if DOCUMENTS[row, t] == side and TARGETS[row, t] != IGNORED]
            scale = 1 / len(places) if loss == "ipo" else 1.0
            for t in places:
                ratio += sign * scale * (policy[row, t] - reference[row, t]).item()
                weights[t] = sign * scale
        sigmoid = 1 / (1 + math.exp(-BETA * ratio))
        if loss == "ipo":
            total += (ratio - 1 / (2 * BETA)) ** 2
            slope = 2 * (ratio - 1 / (2 * BETA))
        else:
            total += -(1 - smoothing) * math.log(sigmoid) - smoothing * math.log(1 - sigmoid)
            slope = -BETA * ((1 - smoothing) * (1 - sigmoid) - smoothing * sigmoid)
        for t, weight in weights.items():
            gradient[row, t] = slope * weight
        accuracy += ratio > 0
        margins += BETA * ratio
    return total, accuracy, margins, gradient


@pytest.mark.parametrize(("loss", "smoothing"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("num_pairs", [2, 3])
def test_loss_gradient_and_measurements_are_those_of_the_papers(loss, smoothing, num_pairs):
    torch.manual_seed(0)
    policy, reference = (-3 * torch.rand(2, 8, dtype=torch.float64) for _ in range(2))
    policy.requires_grad_()
    scores = PairScores.of(reference, TARGETS, DOCUMENTS, num_pairs, compares_means(loss))
    preference = Preference(loss, BETA, smoothing, num_pairs, scores)
    sums = preference_sums(preference.scores(policy, TARGETS, DOCUMENTS), preference)
    sums.total.backward()
    total, accuracy, margins, gradient = by_hand(policy.detach(), reference, loss, smoothing)
    assert sums.total.item() == pytest.approx(total, rel=1e-12)
    assert sums.cross_entropy.item() == pytest.approx(total, rel=1e-12)
    assert sums.num_tokens.item() == len(PAIRS)
    assert sums.parts["reward_accuracy"].item() == accuracy
    assert sums.parts["reward_margin"].item() == pytest.approx(margins, rel=1e-12)
    difference = sums.parts["chosen_reward"] - sums.parts["rejected_reward"]
    assert difference.item() == pytest.approx(margins, rel=1e-12)
    torch.testing.assert_close(policy.grad, gradient, rtol=1e-12, atol=1e-14)


def test_a_batch_without_pairs_adds_nothing():
    nothing = torch.full((1, 4), IGNORED)
    scores = PairScores.of(torch.zeros(1, 4), nothing, torch.zeros(1, 4, dtype=torch.int64), 1, False)
    sums = preference_sums(scores, Preference("ipo", BETA, 0.0, 1, scores))
    assert sums.total.item() == sums.num_tokens.item() == 0
