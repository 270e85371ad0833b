"""Stochastic rounding of bfloat16 weights: its expectation, its bits, and every optimizer with it."""

import math

import pytest
import torch
from devices import CPU, every_device
from torch import nn

from ml.config import ConfigError, configurable
from ml.training import SGD, Adafactor, AdamW, Lion, Muon
from ml.training.optimizers import Optimizer, ParameterGroup
from ml.training.optimizers.rounding import StochasticRounding, round_into
from ml.training.step import train_step

DRAWS = 2**18
ROUNDING = "Trainer.precision = @PureBFloat16\nPureBFloat16.stochastic_rounding = True"


def rounded(values, step=1):
    weights = torch.zeros_like(values, dtype=torch.bfloat16)
    round_into([weights], [values], StochasticRounding(0, step).generator(values.device, "w", (0, 0)))
    return weights


@every_device
# The gap of bfloat16 is 2^-7 of the power of two below a value.
@pytest.mark.parametrize(
    ("below", "gap", "share"),
    [(1.0, 2**-7, 0.25), (-1.0, -(2**-7), 0.9), (3.0, 2**-6, 1 / 512), (0.0, 2.0**-133, 0.5), (255.0, 1.0, 0.75)],
)
def test_a_value_is_rounded_up_with_the_probability_of_its_distance(below, gap, share, device):
    value = torch.tensor(below + share * gap, dtype=torch.float32, device=device)
    found = rounded(value.expand(DRAWS).contiguous()).double()
    assert set(found.tolist()) == {below, below + gap}
    exact = (value.double().item() - below) / gap  # of the float32 value
    deviation = math.sqrt(exact * (1 - exact) / DRAWS)
    assert (found == below + gap).double().mean().item() == pytest.approx(exact, abs=5 * deviation)


def test_what_bfloat16_can_hold_is_kept():
    values = torch.tensor([0.0, -0.0, 1.0, -2.5, 3e38, math.inf, -math.inf]).bfloat16().repeat(1000)
    assert torch.equal(rounded(values.float()), values)
    assert rounded(torch.full((1000,), math.nan)).isnan().all()


@every_device
def test_bits_are_a_function_of_seed_step_name_and_shard(device):
    values = torch.linspace(0.0, 1.0, 5000, device=device)
    first = rounded(values)
    assert torch.equal(rounded(values), first)
    assert not torch.equal(rounded(values, step=2), first)
    for seed, name, offsets in ((1, "w", (0, 0)), (0, "v", (0, 0)), (0, "w", (4, 0))):
        weights = torch.zeros_like(values, dtype=torch.bfloat16)
        round_into([weights], [values], StochasticRounding(seed, 1).generator(device, name, offsets))
        assert not torch.equal(weights, first)


@every_device
@pytest.mark.parametrize("kind", [AdamW, SGD, Lion, Muon, Adafactor])
def test_an_update_below_the_gap_is_made_in_expectation(kind, device):
    """The step of float32 moves each weight by 0.3% of a gap or more, which rounding to nearest loses."""
    shape = (512, 512)
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16().to(device)
    ends = {}
    for name, dtype, rounding in (
        ("float32", torch.float32, None),
        ("nearest", torch.bfloat16, None),
        ("stochastic", torch.bfloat16, StochasticRounding(0, 1)),
    ):
        weight = nn.Parameter(torch.full(shape, 1.25, dtype=dtype, device=device))  # not at the edge of two gaps
        optimizer = kind(1e-4, weight_decay=0.0).create([ParameterGroup(1.0, None, ["a.weight"], [weight])])
        vars(optimizer)["rounding"] = rounding
        weight.grad = gradient.to(dtype)
        optimizer.step()
        ends[name] = weight.detach().double()
    assert (ends["nearest"] == 1.25).all()
    gap = 2.0**-7
    steps = ends["stochastic"] - 1.25
    assert set((steps / gap).unique().tolist()) <= {-1.0, 0.0, 1.0}
    expected = ends["float32"] - 1.25
    for side in (expected > 0, expected < 0):
        share = expected[side].abs().mean().item() / gap
        deviation = math.sqrt(share / side.sum().item())
        # Momentum in bfloat16 rounds the update by 2^-9; Muon iterates in bfloat16 on both sides.
        assert steps[side].abs().mean().item() / gap == pytest.approx(share, abs=5 * deviation + 2**-8 * share)


def test_a_run_rounds_by_seed_and_step_and_keeps_no_copy_in_float32(tiny):
    ends = []
    for bindings in ([ROUNDING], [ROUNDING], [ROUNDING, "Trainer.seed = 0"], ["Trainer.precision = @PureBFloat16"]):
        trainer = tiny(*bindings, "DecoderBlock.dropout = 0.0")
        state = trainer.start(CPU)
        for step in (1, 2):
            train_step(state, trainer.batches(trainer.open_data().training, step), trainer.precision, 1.0, CPU)
        tensors = state.tensors()
        assert {one.dtype for one in tensors.values() if one.ndim and one.is_floating_point()} == {torch.bfloat16}
        ends.append(torch.cat([one.flatten() for name, one in tensors.items() if name.startswith("model/")]))
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])
    assert not torch.equal(ends[0], ends[3])


@configurable(module="rounding")
class RoundsToNearest(Optimizer):
    """An optimizer that does not round."""

    def __init__(self):
        super().__init__(0.1, 0.0)

    def initial_state(self, parameter):
        return {}

    def algorithm(self, settings):
        return torch.optim.SGD(settings)


def test_an_optimizer_that_does_not_round_is_refused_by_name(tiny):
    with pytest.raises(ConfigError, match="cannot be used with stochastic rounding: RoundsToNearest rounds to nearest"):
        tiny(ROUNDING, "Trainer.optimizer = @RoundsToNearest")
