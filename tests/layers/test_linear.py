"""Fused linear layers over one input, and low-rank adapters."""

import copy
import itertools
import math
from functools import partial

import peft
import pytest
import torch
from torch import nn

from ml.blocks import DecoderBlock, Repeat
from ml.config import child
from ml.layers import (
    Attention,
    DoRA,
    Embeddings,
    GatedMLP,
    LanguageModelHead,
    Linear,
    LoRA,
    Projections,
    TokenEmbedding,
    constant,
    normal,
)
from ml.layers.protocol import Adapter
from ml.models import LanguageModel, flops_per_token, materialize, merge_adapters, unmerge_adapters
from ml.models.adapters import adapter_weights

LORA = partial(LoRA, rank=3, alpha=6.0, B_initialization=partial(normal, std=0.5))
DORA = partial(DoRA, rank=3, alpha=6.0, B_initialization=partial(normal, std=0.5), magnitude_initialization=normal)
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


@pytest.mark.parametrize("bias", [True, False])
def test_dora_scales_the_rows_of_the_adapted_weight_by_constant_norms(bias):
    layer = materialize(Linear(7, 5, bias=bias, bias_initialization=normal, apply_peft=DORA)).double()
    adapter = layer.adapter
    generator = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(4, size, dtype=torch.float64, generator=generator) for size in (7, 5))
    changed = layer.weight + 2.0 * adapter.B @ adapter.A
    ratio = (layer.weight.norm(dim=1) / changed.norm(dim=1)).detach()
    expected = x @ ((adapter.magnitude * ratio)[:, None] * changed).T + (layer.bias if bias else 0.0)
    found = layer(x)
    torch.testing.assert_close(found, expected)
    for name, parameter in layer.named_parameters():
        (reference,) = torch.autograd.grad(expected, parameter, gradient, retain_graph=True)
        (actual,) = torch.autograd.grad(found, parameter, gradient, retain_graph=True)
        torch.testing.assert_close(actual, reference, msg=name)
    layer.eval().merge()
    torch.testing.assert_close(layer(x), expected)


@torch.no_grad()
def test_dora_is_that_of_peft():
    layer = materialize(Linear(7, 5, apply_peft=DORA))
    theirs = torch.nn.Sequential(torch.nn.Linear(7, 5))
    theirs[0].load_state_dict({"weight": layer.weight, "bias": layer.bias})
    config = peft.LoraConfig(r=3, lora_alpha=6.0, target_modules=["0"], use_dora=True)
    theirs = peft.get_peft_model(theirs, config)
    adapted = theirs.base_model.model[0]
    adapted.lora_A["default"].weight.copy_(layer.adapter.A)
    adapted.lora_B["default"].weight.copy_(layer.adapter.B)
    adapted.lora_magnitude_vector["default"].weight.copy_(layer.adapter.magnitude * layer.weight.norm(dim=1))
    x = torch.randn(4, 7)
    torch.testing.assert_close(layer(x), theirs(x))


@pytest.mark.parametrize("tied", [False, True])
def test_adapters_of_embeddings_and_head_add_their_products(tied):
    peft_of = {"apply_peft": LORA}
    model = LanguageModel(
        vocab_size=11,
        hidden_size=8,
        embeddings=partial(Embeddings, token=partial(TokenEmbedding, **peft_of)),
        decoder=partial(Repeat, num_blocks=1, block=partial(DecoderBlock, mixer=partial(Attention, num_heads=2))),
        head=partial(LanguageModelHead, **peft_of, loss_chunk_size=4),
        tie_word_embeddings=tied,
    )
    model = materialize(model).double()
    token, head = model.embeddings.token, model.head
    tokens = torch.randint(0, 11, (2, 7), generator=torch.Generator().manual_seed(0))
    table = token.weight + 2.0 * (token.adapter.B @ token.adapter.A).T
    torch.testing.assert_close(token(tokens), table[tokens])
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    own = token.weight if tied else head.weight
    logits = head.norm(x) @ (own + 2.0 * head.adapter.B @ head.adapter.A).T
    torch.testing.assert_close(head(x, model.tied_weight), logits)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="sum")
    found = head.loss(x, tokens, model.tied_weight).total
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    for parameter in (head.adapter.A, head.adapter.B, own):
        (reference,) = torch.autograd.grad(expected, parameter, retain_graph=True)
        (actual,) = torch.autograd.grad(found, parameter, retain_graph=True)
        torch.testing.assert_close(actual, reference, rtol=1e-5, atol=1e-6)
    before = model.eval()(tokens)
    assert set(adapter_weights(model)) == {f"{p}.adapter.{n}" for p in ("embeddings.token", "head") for n in "AB"}
    merge_adapters(model)
    torch.testing.assert_close(model(tokens), before)
    unmerge_adapters(model)
    assert torch.equal(model(tokens), before)
    assert flops_per_token(token, 7) == 6 * 3 * 8  # of B


class Additive(Adapter):
    """An adapter of linear layers alone."""

    def __init__(self, in_features, out_features):
        super().__init__()

    def weight(self):
        return torch.zeros(())


@torch.no_grad()
def test_dora_of_an_embedding_is_that_of_peft():
    layer = materialize(TokenEmbedding(11, 6, apply_peft=DORA))
    theirs = torch.nn.Sequential(torch.nn.Embedding(11, 6))
    theirs[0].weight.copy_(layer.weight)
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=3, lora_alpha=6.0, target_modules=["0"], use_dora=True))
    adapted = theirs.base_model.model[0]
    adapted.lora_embedding_A["default"].copy_(layer.adapter.A)
    adapted.lora_embedding_B["default"].copy_(layer.adapter.B)
    adapted.lora_magnitude_vector["default"].weight.copy_(layer.adapter.magnitude * layer.weight.norm(dim=0))
    tokens = torch.tensor([[0, 3, 10, 3]])
    found = layer(tokens)
    torch.testing.assert_close(found, theirs(tokens))
    assert (found - layer.weight[tokens]).abs().max() > 0.01
    layer.eval().merge()
    torch.testing.assert_close(layer(tokens), found)


def test_adapters_that_do_not_fit_an_embedding_or_a_head_are_refused():
    with pytest.raises(ValueError, match="apply_peft must adapt an embedding, which Additive does not"):
        TokenEmbedding(11, 6, apply_peft=Additive)
    with pytest.raises(ValueError, match=r"set token/LoRA\.dropout = 0\.0"):
        TokenEmbedding(11, 6, apply_peft=partial(LORA, dropout=0.1))
    with pytest.raises(ValueError, match=r"set head/LoRA\.dropout = 0\.0"):
        LanguageModelHead(6, 11, False, apply_peft=partial(LORA, dropout=0.1))


@pytest.mark.parametrize("adapter", [LoRA, DoRA])
def test_an_initial_adapter_changes_no_bit(adapter):
    plain, adapted = materialize(Linear(7, 5)), materialize(Linear(7, 5, apply_peft=adapter))
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


@pytest.mark.parametrize("adapter", [LORA, DORA], ids=["LoRA", "DoRA"])
@pytest.mark.parametrize(
    ("make", "dtype"), [(Linear, torch.float32), (Linear, torch.bfloat16), (TokenEmbedding, torch.float32)]
)
def test_no_order_of_merging_and_loading_changes_the_base(make, dtype, adapter):
    for steps in itertools.product(STEPS, repeat=3):
        layer = materialize(make(7, 5, apply_peft=adapter)).to(dtype).eval()
        base = layer.weight.detach().clone()
        for step in steps:
            STEPS[step](layer)
        layer.unmerge()
        assert torch.equal(layer.weight, base), steps


@pytest.mark.parametrize("adapter", [LORA, DORA], ids=["LoRA", "DoRA"])
@pytest.mark.parametrize(
    ("make", "x"), [(Linear, torch.ones(4, 7)), (TokenEmbedding, torch.arange(7))], ids=["linear", "embedding"]
)
@torch.no_grad()
def test_a_state_dict_loads_as_what_it_is_whether_merged_or_not(make, x, adapter):
    source = materialize(make(7, 5, apply_peft=adapter), seed=1)
    expected = source(x)
    for merge_source, merge_target in itertools.product([False, True], repeat=2):
        layer, target = copy.deepcopy(source), materialize(make(7, 5, apply_peft=adapter))
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
