"""Mixtures of experts against transformers and a float64 loop over tokens, and computation paths against each other."""

import copy
from functools import partial

import pytest
import torch
from devices import CUDA, relative_error
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from transformers import (
    DeepseekV2Config,
    DeepseekV3Config,
    GptOssConfig,
    Llama4TextConfig,
    MixtralConfig,
    Qwen2MoeConfig,
)
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
from transformers.models.llama4.modeling_llama4 import Llama4TextMoe
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

from ml.blocks.activation_checkpointing import ActivationCheckpointing, SelectiveActivationCheckpointing
from ml.config import load
from ml.layers import MLP, Float8, GatedMLP, Linear, LoRA, RMSNorm, relu, silu
from ml.layers.context import Auxiliary, Context
from ml.layers.experts import Experts
from ml.layers.grouped_experts import Stack
from ml.layers.moe import MixtureOfExperts
from ml.layers.routing import SigmoidRouter, SoftmaxRouter
from ml.models import LanguageModel, flops_per_token, materialize
from ml.targets import IGNORED

H, F = 24, 40
PLAIN = partial(Linear, bias=False)

# Both sides round in float32 with different summation orders, on outputs and gradients of order one to ten.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(dtype=torch.float32, std=0.3, **options) -> MixtureOfExperts:
    """Builds with random values in every parameter, including those initialized to zero."""
    options = {"num_experts": 6, "expert": partial(GatedMLP, intermediate_size=F), **options}
    layer = materialize(MixtureOfExperts(H, **options)).to(dtype)
    with torch.no_grad():
        for index, parameter in enumerate(layer.parameters()):
            parameter.copy_(random(*parameter.shape, seed=index) * std)
    return layer


def outputs_and_gradients(layer, x, gradient=None) -> dict[str, torch.Tensor]:
    x = x.detach().clone().requires_grad_()
    y = layer(x)
    y.backward(random(*y.shape, seed=99).to(y.dtype) if gradient is None else gradient)
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    return {"y": y.detach(), "x": x.grad, **gradients}


def assert_same(actual, expected, **tolerance):
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        torch.testing.assert_close(value, expected[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def renamed(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns a weight of transformers under Juniper's names."""
    if name == "experts.gate_up_proj":
        halves = {part: tensor.chunk(2, dim=1)[i] for i, part in enumerate(("gate", "up"))}
        return {
            f"experts.expert_{e}.{part}.weight": half[e] for part, half in halves.items() for e in range(len(tensor))
        }
    if name == "experts.down_proj":
        return {f"experts.expert_{e}.down.weight": matrix for e, matrix in enumerate(tensor)}
    if name.startswith("gate."):
        return {name.replace("gate", "router").replace("e_score_correction_bias", "balance_bias"): tensor}
    return {name.replace("shared_experts.", "shared_expert.").replace("_proj", ""): tensor}


def under_our_names(tensors) -> dict[str, torch.Tensor]:
    return {ours: part for name, tensor in tensors for ours, part in renamed(name, tensor).items()}


def mixtral(num_experts, experts_per_token):
    config = MixtralConfig(
        hidden_size=H, intermediate_size=F, num_local_experts=num_experts, num_experts_per_tok=experts_per_token
    )
    options = {"num_experts": num_experts, "experts_per_token": experts_per_token}
    return MixtralSparseMoeBlock, config, options


def qwen2_moe(normalize):
    config = Qwen2MoeConfig(
        hidden_size=H, moe_intermediate_size=F, shared_expert_intermediate_size=56, num_experts=7,
        num_experts_per_tok=3, norm_topk_prob=normalize,
    )  # fmt: skip
    shared = partial(GatedMLP, intermediate_size=56, linear=PLAIN)
    router = partial(SoftmaxRouter, normalize=normalize)
    options = {"num_experts": 7, "experts_per_token": 3, "router": router, "shared_expert": shared}
    return Qwen2MoeSparseMoeBlock, config, {**options, "shared_expert_gate": True}


def deepseek_v3(num_groups, groups_per_token, normalize=True, num_shared=1):
    config = DeepseekV3Config(
        hidden_size=H, moe_intermediate_size=F, n_routed_experts=12, num_experts_per_tok=4, n_group=num_groups,
        topk_group=groups_per_token, norm_topk_prob=normalize, routed_scaling_factor=1.7, n_shared_experts=num_shared,
    )  # fmt: skip
    router = partial(
        SigmoidRouter, num_groups=num_groups, groups_per_token=groups_per_token, normalize=normalize, scale=1.7
    )
    shared = partial(GatedMLP, intermediate_size=num_shared * F, linear=PLAIN)
    return DeepseekV3MoE, config, {"num_experts": 12, "experts_per_token": 4, "router": router, "shared_expert": shared}


def deepseek_v2():
    config = DeepseekV2Config(
        hidden_size=H, moe_intermediate_size=F, n_routed_experts=12, num_experts_per_tok=4, n_group=3, topk_group=2,
        norm_topk_prob=False, routed_scaling_factor=1.7, n_shared_experts=1, topk_method="group_limited_greedy",
        num_attention_heads=2,
    )  # fmt: skip
    router = partial(SoftmaxRouter, num_groups=3, groups_per_token=2, normalize=False, scale=1.7)
    shared = partial(GatedMLP, intermediate_size=F, linear=PLAIN)
    return DeepseekV2Moe, config, {"num_experts": 12, "experts_per_token": 4, "router": router, "shared_expert": shared}


FAMILIES = {
    "DeepSeek-V2": deepseek_v2(),
    "Mixtral": mixtral(8, 2),
    "Mixtral, all experts": mixtral(3, 3),
    "Mixtral, two of many": mixtral(20, 2),
    "Qwen2-MoE": qwen2_moe(normalize=False),
    "Qwen2-MoE, normalized": qwen2_moe(normalize=True),
    "DeepSeek-V3": deepseek_v3(4, 2),
    "DeepSeek-V3, one group": deepseek_v3(1, 1),
    "DeepSeek-V3, not normalized": deepseek_v3(3, 2, normalize=False, num_shared=2),
}


@pytest.mark.parametrize("grouped", [False, True], ids=["one by one", "grouped"])
@pytest.mark.parametrize(("block", "config", "options"), FAMILIES.values(), ids=FAMILIES)
def test_outputs_and_gradients_are_those_of_transformers(block, config, options, grouped):
    config._experts_implementation = "eager"
    oracle = block(config)
    with torch.no_grad():
        for index, tensor in enumerate((*oracle.parameters(), *oracle.buffers())):
            tensor.copy_(random(*tensor.shape, seed=index) * 0.3)
    expert = partial(GatedMLP, intermediate_size=F, linear=PLAIN)
    layer = materialize(MixtureOfExperts(H, expert=expert, grouped=grouped, **options))
    if layer.shared_expert_gate is not None:
        layer.shared_expert_gate.bias = None
    layer.load_state_dict(under_our_names([*oracle.named_parameters(), *oracle.named_buffers()]), strict=True)
    x = random(3, 17, H)
    expected = outputs_and_gradients(oracle, x)
    found = {"y": expected.pop("y"), "x": expected.pop("x"), **under_our_names(expected.items())}
    assert_same(outputs_and_gradients(layer, x), found, **CLOSE)


@pytest.mark.parametrize("grouped", [False, True], ids=["one by one", "grouped"])
def test_experts_of_gpt_oss_are_those_of_transformers(grouped):
    config = GptOssConfig(hidden_size=H, intermediate_size=F, num_local_experts=6, num_experts_per_tok=3)
    config._experts_implementation = "eager"
    oracle = GptOssMLP(config)
    for index, parameter in enumerate(oracle.parameters()):
        parameter.data.copy_(random(*parameter.shape, seed=index))  # so large that the limit matters
    expert = partial(GatedMLP, intermediate_size=F, limit=7.0, up_offset=1.0, activation=partial(silu, beta=1.702))
    router = partial(SoftmaxRouter, bias=True)
    layer = build(num_experts=6, experts_per_token=3, expert=expert, router=router, grouped=grouped)
    weights = {f"router.{name}": parameter for name, parameter in oracle.router.named_parameters()}
    for name, part in (("gate", slice(None, None, 2)), ("up", slice(1, None, 2)), ("down", slice(None))):
        kind = "down_proj" if name == "down" else "gate_up_proj"
        for number in range(6):
            place = f"experts.expert_{number}.{name}"
            weights[f"{place}.weight"] = getattr(oracle.experts, kind)[number][:, part].T
            weights[f"{place}.bias"] = getattr(oracle.experts, f"{kind}_bias")[number][part]
    layer.load_state_dict(weights)
    x, gradient = random(2, 9, H).requires_grad_(), random(2, 9, H, seed=99)
    expected, found = oracle(x)[0], layer(x)
    scale = expected.abs().max()
    torch.testing.assert_close(found / scale, expected / scale, **CLOSE)
    gradients = [torch.autograd.grad(y, x, gradient)[0] for y in (expected, found)]
    torch.testing.assert_close(gradients[1] / scale, gradients[0] / scale, **CLOSE)


@pytest.mark.parametrize("grouped", [False, True], ids=["one by one", "grouped"])
def test_factors_of_gate_and_output_are_those_of_scaled_weights(grouped):
    scales = {"gate": 0.5, "down": 4.0}  # powers of two, which round nothing
    plain = build(expert=partial(GatedMLP, intermediate_size=F), grouped=grouped)
    expert = partial(GatedMLP, intermediate_size=F, gate_scale=scales["gate"], output_scale=scales["down"])
    scaled = build(expert=expert, grouped=grouped)
    x = random(2, 9, H)
    found = scaled(x)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.mul_(scales.get(name.split(".")[-2], 1.0))
    torch.testing.assert_close(found, plain(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("grouped", [False, True], ids=["one by one", "grouped"])
def test_weights_on_the_input_are_those_of_llama_4(grouped):
    config = Llama4TextConfig(hidden_size=H, intermediate_size=F, num_local_experts=6, num_experts_per_tok=2)
    oracle = Llama4TextMoe(config)
    for index, parameter in enumerate(oracle.parameters()):
        parameter.data.copy_(random(*parameter.shape, seed=index) * 0.3)
    expert = partial(GatedMLP, intermediate_size=F, linear=PLAIN)
    router = partial(SigmoidRouter, normalize=False)
    options = {"expert": expert, "shared_expert": expert, "router": router, "weight_on_input": True}
    layer = build(num_experts=6, experts_per_token=2, grouped=grouped, **options)
    weights = {"router.weight": oracle.router.weight, "router.balance_bias": torch.zeros(6)}
    weights |= {f"shared_expert.{name}".replace("_proj", ""): p for name, p in oracle.shared_expert.named_parameters()}
    for number in range(6):
        gate, up = oracle.experts.gate_up_proj[number].T.chunk(2)
        parts = {"gate": gate, "up": up, "down": oracle.experts.down_proj[number].T}
        weights |= {f"experts.expert_{number}.{name}.weight": part for name, part in parts.items()}
    layer.load_state_dict(weights)
    x, gradient = random(2, 9, H).requires_grad_(), random(2, 9, H, seed=99)
    expected, found = oracle(x)[0].view_as(x), layer(x)
    torch.testing.assert_close(found, expected, **CLOSE)
    wanted = [(x, x), (oracle.router.weight, layer.router.weight)]
    for theirs, ours in wanted:
        (reference,) = torch.autograd.grad(expected, theirs, gradient, retain_graph=True)
        (actual,) = torch.autograd.grad(found, ours, gradient, retain_graph=True)
        torch.testing.assert_close(actual, reference, **CLOSE)


def mixture_by_loops(layer: MixtureOfExperts, x: torch.Tensor) -> torch.Tensor:
    """Computes one token at a time with whole experts."""
    rows = []
    for token in x.flatten(0, 1):
        scores = (layer.router.weight @ token).softmax(-1)
        best = scores.argsort(descending=True)[: layer.experts_per_token]
        total = scores[best].sum() if layer.router.normalize else 1.0
        y = sum(scores[e] / total * getattr(layer.experts, f"expert_{e}")(token) for e in best)
        rows.append(y if layer.shared_expert is None else y + layer.shared_expert(token))
    return torch.stack(rows).view_as(x)


EXPERTS = {
    "gated": {},
    "plain": {"expert": partial(MLP, intermediate_size=F)},
    "of other kinds": {"expert": partial(MLP, intermediate_size=11, linear=partial(LoRA, rank=3))},
    "one of them": {"experts_per_token": 1, "router": partial(SoftmaxRouter, normalize=False)},
    "all of them": {"experts_per_token": 6},
    "a shared expert": {"shared_expert": partial(MLP, intermediate_size=9)},
}


@pytest.mark.parametrize("row_multiple", [1, 4])
@pytest.mark.parametrize("options", EXPERTS.values(), ids=EXPERTS)
def test_the_mixture_equals_a_loop_over_tokens(options, row_multiple, monkeypatch):
    monkeypatch.setattr(Experts, "row_multiple", lambda self, x: row_multiple)
    layer, x = build(torch.float64, grouped=False, **options), random(2, 13, H).double()
    actual = outputs_and_gradients(layer, x)
    layer.zero_grad()
    reference = partial(mixture_by_loops, layer)
    reference.named_parameters = layer.named_parameters
    expected = outputs_and_gradients(reference, x)
    zero = torch.zeros(())
    expected = {k: zero.expand_as(actual[k]).double() if v is None else v for k, v in expected.items()}
    assert_same(actual, expected)  # float64 throughout


def without_one(layer: MixtureOfExperts) -> MixtureOfExperts:
    """Routes no token to expert 2, if the first entry of each token is positive."""
    with torch.no_grad():
        layer.router.weight[2].zero_()[0] = -1000.0
    return layer


def with_some_biases(layer: MixtureOfExperts) -> MixtureOfExperts:
    layer.experts.expert_1.up.bias = layer.experts.expert_4.up.bias = None
    return layer


ADAPTED = partial(GatedMLP, intermediate_size=F, linear=partial(Linear, apply_peft=partial(LoRA, rank=3)))
PATHS = {
    "gated": {},
    "without biases": {"expert": partial(GatedMLP, intermediate_size=F, linear=PLAIN)},
    "plain": {"expert": partial(MLP, intermediate_size=F)},
    "ReLU": {"expert": partial(MLP, intermediate_size=F, activation=relu)},
    "adapters": {"expert": ADAPTED},
    "one expert": {"num_experts": 1, "experts_per_token": 1},
    "many experts": {"num_experts": 40, "experts_per_token": 5},
    "all at once": {"shared_expert": MLP, "shared_expert_gate": True, "router": SigmoidRouter, "experts_per_token": 3},
}


def both_paths(change=lambda layer: layer, **options) -> tuple[MixtureOfExperts, MixtureOfExperts]:
    loop, grouped = (change(build(grouped=grouped, std=0.15, **options)) for grouped in (False, True))
    assert list(loop.state_dict()) == list(grouped.state_dict())
    return loop, grouped


@pytest.mark.parametrize("options", PATHS.values(), ids=PATHS)
def test_grouped_products_equal_a_loop_over_experts(options):
    loop, grouped = both_paths(**options)
    x = random(2, 31, H)
    assert_same(outputs_and_gradients(grouped, x), outputs_and_gradients(loop, x), **CLOSE)


@pytest.mark.parametrize("options", [{}, {"expert": ADAPTED}], ids=["gated", "adapters"])
def test_an_expert_without_tokens_has_a_gradient_of_zero_on_both_paths(options):
    loop, grouped = both_paths(without_one, **options)
    x = random(2, 31, H)
    x[..., 0] = x[..., 0].abs() + 0.1
    _, chosen = loop.router(x.flatten(0, 1))
    assert 2 not in chosen
    actual, expected = outputs_and_gradients(grouped, x), outputs_and_gradients(loop, x)
    assert_same(actual, expected, **CLOSE)
    ours = [value for name, value in expected.items() if "expert_2." in name]
    assert ours
    assert all(not value.any() for value in ours)


def test_experts_with_and_without_a_bias_may_be_grouped():
    loop, grouped = both_paths(with_some_biases)
    x = random(1, 31, H)
    assert_same(outputs_and_gradients(grouped, x), outputs_and_gradients(loop, x), **CLOSE)


def test_merged_adapters_are_not_added_twice():
    _, layer = both_paths(lambda layer: layer.eval(), expert=ADAPTED)
    x = random(1, 31, H)
    expected = layer(x)
    for expert in layer.experts.in_order:
        expert.up.merge()
    torch.testing.assert_close(layer(x), expected, **CLOSE)


@pytest.mark.parametrize("autocast", [False, True], ids=["weights", "compute"])
@pytest.mark.parametrize("grouped", [False, True], ids=["one by one", "grouped"])
def test_bfloat16_errs_by_its_rounding(grouped, autocast):
    # Tokens are rounded for both sides, so that both choose the same experts.
    x = random(2, 50, H).bfloat16().float()
    reference = build(grouped=False, std=0.2)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(parameter.bfloat16())
    layer = copy.deepcopy(reference)
    layer.experts.grouped = grouped
    expected = outputs_and_gradients(reference, x, random(2, 50, H, seed=4))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        layer = layer if autocast else layer.bfloat16()
        gradient = random(2, 50, H, seed=4).bfloat16()
        actual = outputs_and_gradients(layer, x if autocast else x.bfloat16(), gradient)
    assert actual["y"].dtype == torch.bfloat16
    for name, value in actual.items():
        error = (value.float() - expected[name]).norm() / expected[name].norm()
        assert error < 4 * 2**-8, name  # roundings of 2^-9 of input, hidden state, output, gradient and some sums


def test_on_the_cpu_in_16_bits_rows_are_padded_for_experts_that_process_rows_independently():
    seen = []
    layer = build(torch.bfloat16, grouped=False)
    for expert in layer.experts.in_order:
        expert.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    layer(random(1, 50, H).bfloat16())
    assert all(x.shape[:-1].numel() % 16 == 0 for x in seen)
    inner = build(torch.bfloat16, expert=partial(MixtureOfExperts, num_experts=2))
    auxiliary = Auxiliary()
    inner(random(1, 50, H).bfloat16(), Context(auxiliary=auxiliary))
    loads = [load for router, load in auxiliary.loads if router is not inner.router]
    assert sum(float(load.sum()) for load in loads) == 50 * 2 * 2  # none of them is padding


def test_without_gradients_experts_without_tokens_are_skipped():
    layer, calls = build(grouped=False), []
    for expert in layer.experts.in_order:
        expert.register_forward_hook(lambda module, args, output: calls.append(module))
    with torch.no_grad():
        layer(random(1, 1, H))
    assert len(calls) == 2


@pytest.mark.parametrize("grouped", [False, True], ids=["one by one", "grouped"])
def test_a_token_does_not_depend_on_the_others(grouped):
    layer, x = build(grouped=grouped), random(3, 20, H)
    alone = torch.cat([layer(x[i : i + 1, j : j + 1]) for i in range(3) for j in range(20)])
    torch.testing.assert_close(layer(x).flatten(0, 1), alone.squeeze(1), **CLOSE)


OBSTACLES = {
    "experts that are no MLPs": ({"expert": RMSNorm}, "takes experts that are all GatedMLP or all MLP, not RMSNorm"),
    "layers that are not linear": (
        {"expert": partial(MLP, linear=partial(LoRA, rank=3))}, "takes Linear layers, not LoRA as up",
    ),
    "sizes that are not aligned": (
        {"expert": partial(MLP, intermediate_size=12)},
        r"takes layers whose sizes are multiples of 8, not \(12, 24\) as up",
    ),
    "a kernel": (
        {"expert": partial(MLP, intermediate_size=16, linear=partial(Linear, kernel=Float8)), "hidden_size": 16},
        "takes layers without a kernel, not with Float8 as up",
    ),
    "dropout in adapters": (
        {"expert": partial(MLP, linear=partial(Linear, apply_peft=partial(LoRA, dropout=0.1)))},
        "takes adapters without dropout, not layers with it as up",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("options", "message"), OBSTACLES.values(), ids=OBSTACLES)
def test_what_cannot_be_grouped_is_refused_and_otherwise_computed_one_by_one(options, message):
    with pytest.raises(ValueError, match=f"grouped {message}"):
        MixtureOfExperts(**{"hidden_size": H, **options}, grouped=True)
    layer = MixtureOfExperts(**{"hidden_size": H, **options})
    assert not layer.experts.is_grouped(torch.empty(1, H))
    assert layer.experts.obstacle_to_grouping


def test_grouped_products_do_not_synchronize():
    """A fake tensor has no values to read."""
    options = {"expert": ADAPTED, "shared_expert": MLP, "router": SigmoidRouter}
    with FakeTensorMode():
        x, auxiliary = torch.empty(2, 9, H, requires_grad=True), Auxiliary()
        with torch.autocast("cpu", dtype=torch.bfloat16):  # fake products know no other type
            y = MixtureOfExperts(H, grouped=True, **options)(x, Context(auxiliary=auxiliary))
        y.backward(torch.empty_like(y))
        with pytest.raises(DataDependentOutputException):
            y.sum().item()
    assert x.grad.shape == x.shape
    assert auxiliary.loads[0][1].shape == (8,)


def test_experts_one_by_one_follow_shapes_without_values():
    """By shapes alone each expert gets an equal share, and every expert is called."""
    with FakeTensorMode():
        x = torch.empty(2, 9, H, requires_grad=True)
        layer = MixtureOfExperts(H, grouped=False, num_experts=4, experts_per_token=2)
        shares = []
        for expert in layer.experts.in_order:
            expert.register_forward_hook(lambda _, inputs, y: shares.append(len(inputs[0][0])))
        assert layer(x).shape == x.shape
    assert shares == [9, 9, 9, 9]  # 18 tokens, 2 choices each, 4 experts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": 0}, "num_experts must be positive"),
        ({"experts_per_token": 0}, "experts_per_token must be positive"),
        ({"num_experts": 4, "experts_per_token": 5}, r"experts_per_token must be at most num_experts \(4\), not 5"),
        ({"shared_expert_gate": True}, "shared_expert_gate needs a shared_expert"),
        ({"lr_scale": -1.0}, "lr_scale must be at least 0"),
    ],
)
def test_invalid_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MixtureOfExperts(H, **options)


def test_losses_and_loads_reach_the_training_loop():
    layer, auxiliary = build(), Auxiliary()
    layer(random(2, 9, H), Context(auxiliary=auxiliary))
    ((router, load),) = auxiliary.loads
    assert router is layer.router
    assert load.sum() == 2 * 9 * 2
    assert len(auxiliary.losses) == 1
    auxiliary.losses[0].backward()
    assert layer.router.weight.grad.any()


NESTED = partial(MixtureOfExperts, num_experts=2, expert=partial(MLP, intermediate_size=8))


@pytest.mark.parametrize(
    "options",
    [{"grouped": False}, {"grouped": True}, {"expert": NESTED}, {"grouped": True, "weight_on_input": True}],
    ids=["one by one", "grouped", "nested", "weights on the input"],
)
def test_padding_has_no_expert_and_no_gradient(options):
    layer, x = build(**options), random(2, 9, H)
    padding = random(2, 9, seed=3) > 0.4
    calls = []
    layer.experts.in_order[0].register_forward_pre_hook(lambda module, args: calls.append(args[0].shape[-2]))
    x.requires_grad_()
    y = layer(x, Context(padding=padding))
    assert not y[padding].any()
    y.backward(random(2, 9, H, seed=99))
    if calls:  # one by one
        assert calls == [int((layer.router(x[~padding])[1] == 0).sum())]
    padded, x.grad = {name: p.grad for name, p in layer.named_parameters()} | {"x": x.grad}, None
    layer.zero_grad()
    alone = layer(x[~padding][None])
    torch.testing.assert_close(y[~padding], alone[0], **CLOSE)
    alone.backward(random(2, 9, H, seed=99)[~padding][None])
    assert_same(padded, {name: p.grad for name, p in layer.named_parameters()} | {"x": x.grad}, **CLOSE)


def test_padding_of_a_batch_is_what_no_target_depends_on():
    model = materialize(built("SoftmaxRouter.z_loss = 0.1"))
    tokens = torch.randint(0, 64, (2, 11), generator=torch.Generator().manual_seed(0))
    targets = tokens.roll(-1, 1).clone()
    targets[0, [0, 3]] = IGNORED  # a prompt is no padding
    whole = model.loss(tokens[:, :7], targets[:, :7])
    targets[:, 7:] = IGNORED
    padded = model.loss(tokens, targets)
    for (_, found), (_, expected) in zip(padded.loads, whole.loads, strict=True):
        assert torch.equal(found, expected)
        assert found.sum() == 2 * 7 * 2
    torch.testing.assert_close(padded.total, whole.total)
    torch.testing.assert_close(padded.parts, whole.parts)
    packed = model.loss(tokens, tokens.roll(-1, 1), documents=torch.tensor([[0] * 11, [-1] * 4 + [0] * 7]))
    assert [found.sum() for _, found in packed.loads] == [(11 + 7) * 2] * 2


MODEL = """
LanguageModel.vocab_size = 64
LanguageModel.hidden_size = 32
decoder/Repeat.num_blocks = 2
Attention.num_heads = 4
DecoderBlock.mlp = @MixtureOfExperts
MixtureOfExperts.num_experts = 5
MixtureOfExperts.shared_expert = @GatedMLP
MixtureOfExperts.shared_expert_gate = True
GatedMLP.intermediate_size = 16
"""


def built(*bindings: str) -> LanguageModel:
    with torch.device("meta"):
        return load([], [MODEL, *bindings], root=LanguageModel).build(LanguageModel)


def test_every_expert_and_each_of_its_layers_has_a_scope():
    model = built(
        "Linear.bias = False",
        "expert_3/up/Linear.bias = True",
        "block_0/expert_0_to_1/Linear.bias = True",
        "shared_expert/GatedMLP.intermediate_size = 48",
        "shared_expert_gate/Linear.bias = True",
        "experts/expert_2/GatedMLP.lr_scale = 0.5",
        "mlp/router/weight/Parameter.lr_scale = 0.25",
        "block_1/expert_4/GatedMLP.activation = @relu",
    )
    names = {name.removeprefix("decoder.") for name, _ in model.named_parameters() if name.endswith("bias")}
    assert names == {
        *(f"block_{block}.mlp.experts.expert_3.up.bias" for block in (0, 1)),
        *(f"block_0.mlp.experts.expert_{e}.{part}.bias" for e in (0, 1) for part in ("gate", "up", "down")),
        *(f"block_{block}.mlp.shared_expert_gate.bias" for block in (0, 1)),
    }
    mixture = model.decoder.block_1.mlp
    assert mixture.shared_expert.up.out_features == 48
    assert [expert.up.out_features for expert in mixture.experts.in_order] == [16] * 5
    assert [expert.lr_scale for expert in mixture.experts.in_order] == [1.0, 1.0, 0.5, 1.0, 1.0]
    assert mixture.router.parameter_settings["weight"].lr_scale == 0.25
    assert mixture.experts.obstacle_to_grouping == "takes experts with one activation"
    assert model.decoder.block_0.mlp.experts.obstacle_to_grouping is None


def test_names_of_the_weights():
    layer = MixtureOfExperts(
        H, num_experts=2, expert=MLP, shared_expert=partial(MLP, linear=PLAIN), shared_expert_gate=True
    )
    experts = [f"expert_{e}.{part}.{kind}" for e in (0, 1) for part in ("up", "down") for kind in ("weight", "bias")]
    assert [name for name, _ in layer.named_parameters()] == [
        "router.weight",
        *(f"experts.{name}" for name in experts),
        "shared_expert.up.weight",
        "shared_expert.down.weight",
        "shared_expert_gate.weight",
        "shared_expert_gate.bias",
    ]


def test_a_model_with_experts_trains_on_its_router_loss_too():
    model = materialize(built())
    tokens = torch.randint(0, 64, (2, 11), generator=torch.Generator().manual_seed(0))
    sums = model.loss(tokens, tokens)
    assert len(sums.loads) == 2
    assert "router_loss" in sums.parts
    sums.mean.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_flops_count_the_active_experts_of_a_token():
    expert = partial(GatedMLP, intermediate_size=F)
    layer = MixtureOfExperts(H, num_experts=10, experts_per_token=3, expert=expert)
    assert flops_per_token(layer, 7) == pytest.approx(6 * (3 * 3 * H * F + 10 * H))
    layer = MixtureOfExperts(H, num_experts=10, experts_per_token=3, shared_expert=expert, shared_expert_gate=True)
    expected = 3 * 3 * H * GatedMLP(H).up.out_features + 10 * H + 3 * H * F + H
    assert flops_per_token(layer, 7) == pytest.approx(6 * expected)


def test_flops_of_mixtures_in_mixtures_multiply():
    expert = partial(MLP, intermediate_size=F, activation=silu)
    inner = partial(MixtureOfExperts, num_experts=4, experts_per_token=3, expert=expert)
    layer = MixtureOfExperts(H, num_experts=6, experts_per_token=2, expert=inner)
    assert flops_per_token(layer, 7) == pytest.approx(6 * (6 * H + 2 * (4 * H + 3 * 2 * H * F)))


@pytest.mark.parametrize("grouped", [False, True], ids=["one by one", "grouped"])
@pytest.mark.parametrize("checkpointing", [ActivationCheckpointing, SelectiveActivationCheckpointing])
def test_activation_checkpointing_changes_no_gradient(checkpointing, grouped):
    layer, x = build(grouped=grouped), random(2, 15, H)
    expected = outputs_and_gradients(layer, x)
    layer.zero_grad()
    recomputed = partial(checkpointing(), layer)
    recomputed.named_parameters = layer.named_parameters
    assert_same(outputs_and_gradients(recomputed, x), expected, rtol=0.0, atol=0.0)


def test_stacked_weights_are_those_of_torch():
    frozen, *trained = (random(8, 16, seed=seed).requires_grad_(seed > 0) for seed in range(3))
    gradient = random(3, 8, 16, seed=9).bfloat16()
    for dtype in (torch.float32, torch.bfloat16):
        expected = torch.stack([frozen, *trained]).to(dtype)
        actual = Stack.apply(dtype, frozen, *trained)
        assert torch.equal(actual, expected)
        assert actual.dtype == dtype
        gradients = torch.autograd.grad(actual, trained, gradient.to(dtype))
        for found, wanted in zip(gradients, torch.autograd.grad(expected, trained, gradient.to(dtype)), strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.gpu
def test_experts_one_by_one_on_a_gpu_are_those_of_the_cpu():
    layer, x = build(grouped=False), random(3, 17, H)
    expected = outputs_and_gradients(layer, x)
    layer.zero_grad()
    found = outputs_and_gradients(layer.to(CUDA), x.to(CUDA), random(3, 17, H, seed=99).to(CUDA))
    assert_same({name: value.cpu() for name, value in found.items()}, expected, **CLOSE)


@pytest.mark.gpu
@pytest.mark.parametrize("num_experts", [6, 40])  # of 40 some get no token
@pytest.mark.parametrize("router", [SoftmaxRouter, SigmoidRouter])
def test_grouped_experts_on_a_gpu_are_those_one_by_one_and_do_not_synchronize(num_experts, router):
    found = []
    x, gradient = (random(3, 17, H, seed=seed).bfloat16().to(CUDA) for seed in (0, 99))
    for is_grouped in (False, True):
        layer = build(torch.bfloat16, num_experts=num_experts, router=router, grouped=is_grouped).to(CUDA)
        outputs_and_gradients(layer, x, gradient)  # sets up libraries
        layer.zero_grad()
        torch.cuda.set_sync_debug_mode("error" if is_grouped else "default")
        try:
            found.append(outputs_and_gradients(layer, x, gradient))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    one_by_one, grouped = found
    errors = {
        name: relative_error(torch.zeros_like(value) if grouped[name] is None else grouped[name], value, 1e-3)
        for name, value in one_by_one.items()
        if value is not None
    }
    # Both round to bfloat16, by 2^-9, after each product; the choices of the router are the same.
    assert max(errors.values()) < 2**-5, errors
