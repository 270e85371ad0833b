"""Initializations against the distributions of scipy."""

import math

import pytest
import torch
from scipy import stats

from ml.layers import (
    constant,
    fan_in_uniform,
    kaiming_normal,
    kaiming_uniform,
    normal,
    ones,
    scaled_normal,
    truncated_normal,
    uniform,
    xavier_normal,
    xavier_uniform,
    zeros,
)

OUT, IN = 300, 200


def uniform_of(bound):
    return stats.uniform(-bound, 2 * bound)


CASES = {
    "normal": (normal, {}, stats.norm(0, 0.02)),
    "normal with mean": (normal, {"std": 0.5, "mean": -1.0}, stats.norm(-1.0, 0.5)),
    "truncated normal": (truncated_normal, {}, stats.truncnorm(-3, 3, 0, 0.02)),
    "truncated normal, cut close": (
        truncated_normal,
        {"std": 0.1, "mean": 2.0, "cutoff": 0.5},
        stats.truncnorm(-0.5, 0.5, 2.0, 0.1),
    ),
    "scaled normal": (scaled_normal, {"std": 0.02, "num_layers": 8}, stats.norm(0, 0.02 / 4)),
    "uniform": (uniform, {"low": -1.0, "high": 3.0}, stats.uniform(-1.0, 4.0)),
    "xavier uniform": (xavier_uniform, {"gain": 2.0}, uniform_of(2.0 * math.sqrt(6 / (OUT + IN)))),
    "xavier normal": (xavier_normal, {}, stats.norm(0, math.sqrt(2 / (OUT + IN)))),
    "fan in uniform": (fan_in_uniform, {"gain": 2.0}, uniform_of(2.0 / math.sqrt(IN))),
    "kaiming uniform": (kaiming_uniform, {}, uniform_of(math.sqrt(6 / IN))),
    "kaiming uniform, fan out": (kaiming_uniform, {"gain": 1.0, "mode": "fan_out"}, uniform_of(math.sqrt(3 / OUT))),
    "kaiming normal": (kaiming_normal, {}, stats.norm(0, math.sqrt(2 / IN))),
    "kaiming normal, fan out": (kaiming_normal, {"mode": "fan_out"}, stats.norm(0, math.sqrt(2 / OUT))),
}


def fill(initialization, shape=(OUT, IN), seed=0, **options) -> torch.Tensor:
    tensor = torch.full(shape, math.nan)
    initialization(**options)(tensor, generator=torch.Generator().manual_seed(seed))
    return tensor


@pytest.mark.parametrize(("initialization", "options", "distribution"), CASES.values(), ids=CASES)
def test_draws_follow_the_distribution(initialization, options, distribution):
    tensor = fill(initialization, **options)
    # The seed is fixed. At this size, a scale that is wrong by one part in 1000 fails.
    assert stats.kstest(tensor.flatten().double().numpy(), distribution.cdf).pvalue > 1e-3
    assert tensor.std().item() == pytest.approx(distribution.std(), rel=0.01)


@pytest.mark.parametrize(
    ("initialization", "options", "value"),
    [(constant, {"value": -2.5}, -2.5), (constant, {}, 0.0), (zeros, {}, 0.0), (ones, {}, 1.0)],
)
def test_constants_fill_every_element(initialization, options, value):
    assert fill(initialization, (3, 4), **options).eq(value).all()


def test_fans_include_the_receptive_field():
    tensor = fill(kaiming_normal, (64, 32, 5), gain=1.0)
    assert tensor.std().item() == pytest.approx(1 / math.sqrt(32 * 5), rel=0.03)


def test_the_generator_alone_decides_the_draws():
    torch.manual_seed(0)
    first = fill(normal, seed=3)
    torch.manual_seed(1)
    assert torch.equal(first, fill(normal, seed=3))
    assert not torch.equal(first, fill(normal, seed=4))


@pytest.mark.parametrize(
    ("initialization", "shape", "options", "message"),
    [
        (normal, (4, 4), {"std": -1.0}, "std must be at least 0"),
        (truncated_normal, (4, 4), {"cutoff": 0.0}, "cutoff must be positive"),
        (xavier_normal, (4,), {}, "two dimensions or more"),
        (kaiming_normal, (4, 4), {"gain": -1.0}, "gain must be at least 0"),
        (scaled_normal, (4, 4), {}, "num_layers must be set"),
        (uniform, (4, 4), {"low": 1.0, "high": 0.0}, "must not be above"),
    ],
)
def test_impossible_distributions_are_refused(initialization, shape, options, message):
    with pytest.raises(ValueError, match=message):
        fill(initialization, shape, **options)
