"""Routers against formulas, float64 loops and the transformers library."""

import math
from functools import partial

import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from ml.layers.context import Auxiliary, Context
from ml.layers.moe import MixtureOfExperts
from ml.layers.routing import SigmoidRouter, SoftmaxRouter
from ml.models import materialize

H, E = 10, 12


def build(router, experts_per_token=3, num_experts=E, seed=0, **options):
    layer = materialize(router(H, num_experts, experts_per_token, **options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * 0.4)
        for buffer in layer.buffers():
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.3)
    return layer


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def choices(layer, x) -> dict[str, object]:
    """Returns the losses and loads of a training pass."""
    auxiliary = Auxiliary()
    layer(x, Context(auxiliary=auxiliary))
    ((router, load),) = auxiliary.loads
    assert router is layer
    return {"load": load, "losses": auxiliary.losses}


@pytest.mark.parametrize(("normalize", "experts_per_token"), [(False, 1), (False, 3), (False, E), (True, 3), (True, E)])
def test_softmax_router_selects_the_most_probable(normalize, experts_per_token):
    layer, x = build(SoftmaxRouter, experts_per_token, normalize=normalize).double(), random(40, H).double()
    weights, experts = layer(x)
    for t in range(len(x)):
        scores = [math.exp(float(row @ x[t])) for row in layer.weight.detach()]
        best = sorted(range(E), key=lambda e: -scores[e])[:experts_per_token]
        total = sum(scores[e] for e in best) if normalize else sum(scores)
        assert experts[t].tolist() == best
        torch.testing.assert_close(weights[t], torch.tensor([scores[e] / total for e in best], dtype=torch.float64))


GROUPS = {
    "one group": {},
    "the best of several groups": {"num_groups": 4, "groups_per_token": 2},
    "all groups": {"num_groups": 3, "groups_per_token": 3},
    "groups of one": {"num_groups": 12, "groups_per_token": 5},
    "no normalization": {"num_groups": 2, "normalize": False, "scale": 2.5},
    "scale": {"scale": 0.4},
}


@pytest.mark.parametrize("options", GROUPS.values(), ids=GROUPS)
def test_sigmoid_router_selects_by_score_plus_bias_and_weights_by_score(options):
    layer, x = build(SigmoidRouter, **options), random(60, H).double()
    layer.weight.data = layer.weight.data.double()
    weights, experts = layer(x)
    num_groups, open_groups = options.get("num_groups", 1), options.get("groups_per_token", 1)
    size = E // num_groups
    for t in range(len(x)):
        scores = [1 / (1 + math.exp(-float(row @ x[t]))) for row in layer.weight.detach()]
        biased = [score + float(bias) for score, bias in zip(scores, layer.balance_bias, strict=True)]
        value = [sum(sorted(biased[g * size : (g + 1) * size])[-2:]) for g in range(num_groups)]
        groups = sorted(range(num_groups), key=lambda g: -value[g])[:open_groups]
        best = sorted((e for e in range(E) if e // size in groups), key=lambda e: -biased[e])[:3]
        total = sum(scores[e] for e in best) if options.get("normalize", True) else 1.0
        expected = torch.tensor([options.get("scale", 1.0) * scores[e] / total for e in best], dtype=torch.float64)
        assert experts[t].tolist() == best
        torch.testing.assert_close(weights[t], expected)


SOFTMAX = {
    "scale": {"scale": 2.5, "normalize": False},
    "bias": {"bias": True},
    "balancing bias": {"balance_bias": True},
    "groups": {"num_groups": 4, "groups_per_token": 2, "normalize": False},
    "all at once": {"num_groups": 3, "groups_per_token": 2, "bias": True, "balance_bias": True, "scale": 0.7},
}


@pytest.mark.parametrize("options", SOFTMAX.values(), ids=SOFTMAX)
def test_softmax_router_selects_in_the_best_groups_by_probability_plus_balancing_bias(options):
    layer, x = build(SoftmaxRouter, **options).double(), random(60, H).double()
    weights, experts = layer(x)
    num_groups, open_groups = options.get("num_groups", 1), options.get("groups_per_token", 1)
    size = E // num_groups
    bias = torch.zeros(E) if layer.bias is None else layer.bias.data.copy_(random(E, seed=7))
    balance = [0.0] * E if layer.balance_bias is None else layer.balance_bias.tolist()
    weights, experts = layer(x)
    for t in range(len(x)):
        scores = [math.exp(float(row @ x[t] + b)) for row, b in zip(layer.weight.detach(), bias, strict=True)]
        scores = [score / sum(scores) for score in scores]
        biased = [score + b for score, b in zip(scores, balance, strict=True)]
        groups = sorted(range(num_groups), key=lambda g: -max(biased[g * size : (g + 1) * size]))[:open_groups]
        best = sorted((e for e in range(E) if e // size in groups), key=lambda e: -biased[e])[:3]
        total = sum(scores[e] for e in best) if options.get("normalize", True) else 1.0
        expected = torch.tensor([options.get("scale", 1.0) * scores[e] / total for e in best], dtype=torch.float64)
        assert experts[t].tolist() == best
        torch.testing.assert_close(weights[t], expected)


def test_a_softmax_router_is_balanced_only_with_a_balancing_bias():
    layer = materialize(SoftmaxRouter(H, 4, 2, balance_bias=True, bias_update_rate=0.25))
    layer.balance(torch.tensor([10.0, 2.0, 5.0, 3.0]))
    assert layer.balance_bias.tolist() == [-0.25, 0.25, 0.0, 0.25]
    plain = materialize(SoftmaxRouter(H, 4, 2))
    plain.balance(torch.tensor([10.0, 2.0, 5.0, 3.0]))
    assert plain.balance_bias is None
    assert list(plain.state_dict()) == ["weight"]


@pytest.mark.parametrize("router", [SoftmaxRouter, SigmoidRouter])
def test_scores_are_computed_in_float32_whatever_the_model_computes_in(router):
    layer, x = build(router), random(50, H)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = layer(x)
    for value, reference in zip(actual, expected, strict=True):
        assert torch.equal(value, reference)
    weights, experts = layer.bfloat16()(x.bfloat16())
    assert weights.dtype == torch.float32
    rounded = build(router)
    rounded.load_state_dict({name: value.float() for name, value in layer.state_dict().items()})
    assert torch.equal(experts, rounded(x.bfloat16().float())[1])


@pytest.mark.parametrize("router", [SoftmaxRouter, SigmoidRouter])
def test_load_counts_the_selections_in_training_and_only_on_request(router):
    layer, x = build(router), random(70, H)
    _, experts = layer(x)
    load = choices(layer, x)["load"]
    assert load.dtype == torch.float32
    assert not load.requires_grad
    assert load.tolist() == [int((experts == e).sum()) for e in range(E)]
    layer(x, Context())
    layer.eval()
    auxiliary = Auxiliary()
    layer(x, Context(auxiliary=auxiliary))
    assert not auxiliary.loads
    assert not auxiliary.losses


@pytest.mark.parametrize("experts_per_token", [1, 2, 4])
def test_auxiliary_loss_is_that_of_transformers(experts_per_token):
    layer, x = build(SoftmaxRouter, experts_per_token, auxiliary_loss=0.3, normalize=False), random(90, H)
    expected = 0.3 * load_balancing_loss_func((x @ layer.weight.T,), E, experts_per_token)
    (loss,) = choices(layer, x)["losses"]
    torch.testing.assert_close(loss, expected)
    actual_gradient, gradient = (torch.autograd.grad(value, layer.weight)[0] for value in (loss, expected))
    torch.testing.assert_close(actual_gradient, gradient)


def test_auxiliary_loss_of_an_even_load_is_the_number_of_choices():
    layer = build(SoftmaxRouter, 2, num_experts=5, auxiliary_loss=1.0)
    layer.weight.data = 1e-4 * torch.eye(5, H)  # nearly the same probability for each
    x = torch.eye(5, H) + torch.eye(5, H).roll(1, 0)  # token i chooses experts i and i - 1
    (loss,) = choices(layer, x)["losses"]
    assert loss.item() == pytest.approx(2.0, rel=1e-6)


def test_z_loss_is_the_mean_square_of_the_log_of_the_partition():
    layer, x = build(SoftmaxRouter, auxiliary_loss=0.0, z_loss=0.7), random(33, H)
    (loss,) = choices(layer, x)["losses"]
    partitions = [sum(math.exp(float(row @ token)) for row in layer.weight.detach()) for token in x]
    expected = sum(math.log(partition) ** 2 for partition in partitions) / len(x)
    assert loss.item() == pytest.approx(0.7 * expected, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, layer.weight)
    logits = (x @ layer.weight.T).double()
    slope = 2 * logits.logsumexp(-1, keepdim=True) * logits.softmax(-1) / len(x)
    torch.testing.assert_close(gradient, 0.7 * slope.T.float() @ x)


@pytest.mark.parametrize("router", [SoftmaxRouter, SigmoidRouter])
def test_one_expert_per_token_has_a_gradient_or_is_refused(router):
    with pytest.raises(ValueError, match="normalize makes every weight 1 where experts_per_token is 1"):
        router(H, E, 1)
    layer = build(router, 1, normalize=False)
    layer(random(20, H))[0].sum().backward()
    assert layer.weight.grad.any()


@pytest.mark.parametrize(
    "options", [{"auxiliary_loss": 0.3}, {"auxiliary_loss": 0.0, "z_loss": 0.7}], ids=["load", "z"]
)
def test_padding_counts_in_no_load_and_no_loss(options):
    layer, x = build(SoftmaxRouter, **options), random(2 * 15, H)
    padding = random(2, 15, seed=5) > 0.3
    auxiliary = Auxiliary()
    layer(x, Context(auxiliary=auxiliary, padding=padding))
    expected = choices(layer, x[~padding.flatten()])
    ((_, load),) = auxiliary.loads
    assert torch.equal(load, expected["load"])
    torch.testing.assert_close(auxiliary.losses, expected["losses"])
    gradients = [torch.autograd.grad(losses[0], layer.weight)[0] for losses in (auxiliary.losses, expected["losses"])]
    torch.testing.assert_close(*gradients)
    nothing = Auxiliary()
    layer(x, Context(auxiliary=nothing, padding=torch.ones_like(padding)))
    assert [loss.item() for loss in nothing.losses] == [0.0]


def test_without_coefficients_there_are_no_losses():
    assert choices(build(SoftmaxRouter, auxiliary_loss=0.0), random(9, H))["losses"] == []
    assert len(choices(build(SoftmaxRouter, z_loss=1.0), random(9, H))["losses"]) == 2
    assert choices(build(SigmoidRouter), random(9, H))["losses"] == []


def test_balance_moves_the_bias_by_the_rate_towards_an_even_load():
    layer = materialize(SigmoidRouter(H, 4, 2, bias_update_rate=0.25))
    assert layer.balance_bias.tolist() == [0.0] * 4
    layer.balance(torch.tensor([10.0, 2.0, 5.0, 3.0]))
    assert layer.balance_bias.tolist() == [-0.25, 0.25, 0.0, 0.25]
    layer.balance(torch.tensor([4.0, 5.0, 3.0, 4.0]))
    assert layer.balance_bias.tolist() == [-0.25, 0.0, 0.25, 0.25]


def test_a_rate_of_zero_leaves_the_bias_as_it_is():
    layer = build(SigmoidRouter, bias_update_rate=0.0)
    before = layer.balance_bias.clone()
    layer.balance(torch.arange(E).float())
    assert torch.equal(layer.balance_bias, before)


def test_the_bias_balances_a_skewed_router_without_changing_weights():
    layer = build(SigmoidRouter, 2, num_experts=8, bias_update_rate=0.01)
    with torch.no_grad():
        layer.balance_bias.zero_()
        layer.weight[0, 0] = 3.0
        layer.weight[1, 0] = 2.0
    weight = layer.weight.detach().clone()
    excess = []
    for step in range(150):
        x = random(512, H, seed=step)
        x[:, 0] = x[:, 0].abs() + 1.0  # experts 0 and 1 would win everywhere
        load = choices(layer, x)["load"]
        excess.append(float(load.max() / load.mean()))
        layer.balance(load)
    assert sum(excess[:5]) / 5 > 3.0
    # 128 tokens an expert scatter by 10 or so, and the bias by a step or two of 0.01.
    assert sum(excess[-20:]) / 20 < 1.35
    assert torch.equal(layer.weight, weight)


def test_the_bias_has_no_part_in_the_weights():
    layer, x = build(SigmoidRouter, E), random(20, H)  # every expert is chosen, in the order of score + bias
    weights, experts = layer(x)
    before = torch.zeros(20, E).scatter(-1, experts, weights)
    layer.balance_bias.add_(random(E, seed=5))
    weights, changed = layer(x)
    assert not torch.equal(changed, experts)
    torch.testing.assert_close(torch.zeros(20, E).scatter(-1, changed, weights), before)


def test_the_bias_is_a_float32_buffer_that_is_saved_and_not_trained():
    with torch.device("meta"):
        layer = SigmoidRouter(H, E, 2)
    assert layer.balance_bias.is_meta
    materialize(layer)
    assert set(layer.state_dict()) == {"weight", "balance_bias"}
    assert layer.balance_bias.dtype == torch.float32
    assert [name for name, _ in layer.named_parameters()] == ["weight"]


def test_a_token_without_any_score_has_weights_of_zero():
    layer = build(SigmoidRouter)
    layer.weight.data.fill_(-100.0)
    weights, _ = layer(torch.full((1, H), 10.0))
    assert weights.tolist() == [[0.0] * 3]


@pytest.mark.parametrize(
    ("router", "options", "message"),
    [
        (SoftmaxRouter, {"auxiliary_loss": -1.0}, "auxiliary_loss must be at least 0"),
        (SoftmaxRouter, {"z_loss": math.inf}, "z_loss must be at least 0 and finite"),
        (SoftmaxRouter, {"lr_scale": -1.0}, "lr_scale must be at least 0"),
        (SigmoidRouter, {"num_groups": 5}, r"num_groups must divide num_experts \(12\), not be 5"),
        (SigmoidRouter, {"num_groups": 0}, "num_groups must be positive"),
        (SigmoidRouter, {"groups_per_token": 2}, r"groups_per_token must be at most num_groups \(1\), not 2"),
        (SigmoidRouter, {"num_groups": 2, "groups_per_token": 0}, "groups_per_token must be positive"),
        (SigmoidRouter, {"num_groups": 6}, "groups_per_token leaves a token 2 experts, and experts_per_token is 3"),
        (SigmoidRouter, {"scale": 0.0}, "scale must be positive"),
        (SigmoidRouter, {"bias_update_rate": -0.1}, "bias_update_rate must be at least 0"),
        (SigmoidRouter, {"lr_scale": math.nan}, "lr_scale must be at least 0"),
    ],
)
def test_invalid_options_are_named(router, options, message):
    with pytest.raises(ValueError, match=message):
        MixtureOfExperts(H, num_experts=E, experts_per_token=3, router=partial(router, **options))
