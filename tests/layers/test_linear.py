"""Fused linear layers over one input, and low-rank adapters."""

import copy
import itertools
import math
from functools import partial

import pytest
import torch
from torch import nn

from ml.config import child
from ml.layers import GatedMLP, Linear, LoRA, Projections, constant, normal
from ml.models import materialize

LORA = partial(LoRA, rank=3, alpha=6.0, B_initialization=partial(normal, std=0.5))
KINDS = {
    "plain": [{}, {}, {}],
    "some biases": [{"bias": True}, {"bias": False}, {"bias": True}],
    "no biases": [{"bias": False}] * 3,
    "adapters": [{"apply_peft": LORA}, {}, {"apply_peft": LORA, "bias": False}],
}


class Three(nn.Module):
    """A layer with three projections of one input."""

    def __init__(self, options, fused):
        super().__init__()
        sizes = (4, 1, 7)
        for index, (size, kind) in enumerate(zip(sizes, options, strict=True)):
            kind = {"bias_initialization": partial(constant, value=0.5 + index), **kind}
            setattr(self, f"part_{index}", child(f"part_{index}", partial(Linear, **kind), 5, size))
        self.projections = child("projections", Projections, list(self.children()), fused=fused)

    def forward(self, x):
        return self.projections(x)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_fused_projections_are_the_separate_ones_in_outputs_gradients_and_names(options):
    apart, fused = (materialize(Three(options, fused)).double() for fused in (False, True))
    assert list(apart.state_dict()) == list(fused.state_dict())
    fused.load_state_dict(apart.state_dict())
    x = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for model in (apart, fused):
        sum((i + 1) * part.sin().sum() for i, part in enumerate(model(x))).backward()
    for part, other in zip(apart(x), fused(x), strict=True):
        torch.testing.assert_close(part, other)
    for (name, p), q in zip(apart.named_parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_a_frozen_part_of_a_fused_product_gets_no_gradient():
    model = materialize(Three([{}, {"bias": False}, {}], fused=True))
    model.part_1.weight.requires_grad_(False)
    sum(part.sum() for part in model(torch.randn(2, 5))).backward()
    assert model.part_1.weight.grad is None
    assert model.part_0.weight.grad is not None


def test_a_layer_other_than_linear_cannot_be_fused():
    with pytest.raises(ValueError, match="fused needs Linear layers, not Identity"):
        Projections([nn.Identity()], fused=True)
    Projections([nn.Identity()])


@pytest.mark.parametrize(
    ("options", "scale"), [({}, 2.0), ({"rank_stabilized": True}, 6 / math.sqrt(3)), ({"alpha": 1.5}, 0.5)]
)
def test_an_adapter_adds_a_product_of_low_rank(options, scale):
    layer = materialize(Linear(7, 5, apply_peft=partial(LORA, **options))).double()
    x = torch.randn(4, 7, dtype=torch.float64)
    expected = x @ layer.weight.T + layer.bias + scale * (x @ layer.adapter.A.T @ layer.adapter.B.T)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(x @ layer.whole_weight().T + layer.bias, expected)


def test_an_initial_adapter_changes_no_bit():
    plain, adapted = materialize(Linear(7, 5)), materialize(Linear(7, 5, apply_peft=LoRA))
    x = torch.randn(4, 7)
    assert torch.equal(plain(x), adapted(x))
    assert adapted.adapter.A.abs().sum() > 0


def test_merging_keeps_the_outputs_and_unmerging_restores_every_bit():
    layer = materialize(GatedMLP(8, linear=partial(Linear, apply_peft=LORA))).eval()
    x = torch.randn(3, 8)
    before, weight = layer(x), layer.up.weight.clone()
    layer.up.merge()
    layer.up.merge()  # twice is once
    assert not torch.equal(layer.up.weight, weight)
    torch.testing.assert_close(layer(x), before)
    layer.up.unmerge()
    layer.up.unmerge()
    assert torch.equal(layer.up.weight, weight)
    assert torch.equal(layer(x), before)


def change_adapter(layer):
    layer.adapter.B.data.mul_(-3.0)


def load_own_state(layer):
    layer.load_state_dict({name: value.clone() for name, value in layer.state_dict().items()})


def load_adapter_alone(layer):
    layer.load_state_dict({"adapter.B": torch.ones_like(layer.adapter.B)}, strict=False)


STEPS = {
    "merge": lambda layer: layer.merge(),
    "unmerge": lambda layer: layer.unmerge(),
    "another adapter": change_adapter,
    "own state": load_own_state,
    "adapter alone": load_adapter_alone,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_order_of_merging_and_loading_changes_the_base(dtype):
    for steps in itertools.product(STEPS, repeat=3):
        layer = materialize(Linear(7, 5, apply_peft=LORA)).to(dtype).eval()
        base = layer.weight.detach().clone()
        for step in steps:
            STEPS[step](layer)
        layer.unmerge()
        assert torch.equal(layer.weight, base), steps


@torch.no_grad()
def test_a_state_dict_loads_as_what_it_is_whether_merged_or_not():
    source = materialize(Linear(7, 5, apply_peft=LORA), seed=1)
    x = torch.randn(4, 7)
    expected = source(x)
    for merge_source, merge_target in itertools.product([False, True], repeat=2):
        layer, target = copy.deepcopy(source), materialize(Linear(7, 5, apply_peft=LORA))
        if merge_source:
            layer.merge()
        if merge_target:
            target.merge()
        target.load_state_dict(layer.state_dict())
        torch.testing.assert_close(target(x), expected)
        target.unmerge()
        assert torch.equal(target.weight, source.weight)
        torch.testing.assert_close(target(x), expected)


def test_a_merged_layer_is_not_trained():
    layer = materialize(Linear(7, 5, apply_peft=LORA))
    layer.merge()
    with pytest.raises(ValueError, match="the adapter is merged into the weight"):
        layer(torch.randn(4, 7))
    with torch.no_grad():
        layer(torch.randn(4, 7))
    layer.unmerge()
    layer(torch.randn(4, 7)).sum().backward()
    assert layer.adapter.B.grad is not None


def test_dropout_of_an_adapter_is_active_on_its_input_in_training_only():
    layer = materialize(Linear(64, 5, bias=False, apply_peft=partial(LORA, dropout=0.5)))
    x = torch.randn(4, 64)
    expected = x @ layer.whole_weight().T
    assert not torch.allclose(layer.train()(x), expected, atol=1e-3)
    torch.testing.assert_close(layer.eval()(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be positive"),
        ({"alpha": 0.0}, "alpha must be positive"),
        ({"dropout": 1.0}, "dropout must be at least 0"),
        ({"lr_scale": -1.0}, "lr_scale must be at least 0"),
    ],
)
def test_invalid_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LoRA(3, 4, **options)
