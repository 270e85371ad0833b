"""Attention against an explicit loop in float64."""

import math
from functools import partial

import pytest
import torch
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.falcon.modeling_falcon import build_alibi_tensor as falcon_biases

from ml.layers import Attention, Context, Linear, RMSNorm, Rotary, attention_reference
from ml.layers.alibi import AlibiHeads
from ml.layers.attention_kernels.visibility import visible_keys
from ml.layers.context import places_in_documents
from ml.models import materialize

B, T, H = 2, 13, 24
CASES = {
    "causal": {},
    "bidirectional": {"causal": False},
    "window": {"window_size": 4},
    "window of one": {"window_size": 1},
    "window beyond the sequence": {"window_size": 99},
    "bidirectional window": {"window_size": 3, "causal": False},
    "softmax scale": {"softmax_scale": 0.7},
    "grouped keys": {"num_kv_heads": 2},
    "odd head size": {"head_size": 7},
    "query and key norm": {"query_norm": RMSNorm, "key_norm": RMSNorm},
    "query norm alone": {"query_norm": RMSNorm, "softmax_scale": 2.0},
    "norm over all heads": {"query_norm": RMSNorm, "key_norm": RMSNorm, "norm_over": "all_heads", "num_kv_heads": 2},
    "norm of each head": {"query_norm": RMSNorm, "key_norm": RMSNorm, "norm_over": "each_head", "num_kv_heads": 2},
    "value heads of another size": {"value_head_size": 3, "num_kv_heads": 2, "gated": True},
    "soft cap": {"soft_cap": 0.8},
    "sinks": {"attention_sinks": True},
    "gate": {"gated": True},
    "cap and sinks in a window": {"soft_cap": 0.8, "attention_sinks": True, "window_size": 3, "num_kv_heads": 2},
    "cap and sinks to both sides": {"soft_cap": 0.8, "attention_sinks": True, "causal": False},
    "all at once": {
        "num_kv_heads": 1, "head_size": 5, "window_size": 5, "softmax_scale": 0.3,
        "query_norm": RMSNorm, "key_norm": RMSNorm, "soft_cap": 2.0, "attention_sinks": True, "gated": True,
    },
}  # fmt: skip


def build(dtype=torch.float64, **options) -> Attention:
    layer = materialize(Attention(H, **{"num_heads": 4, "rotary": None, **options})).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return layer


def random_input(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def attention_by_loops(layer: Attention, x: torch.Tensor) -> torch.Tensor:
    """Computes attention for one query, head and key at a time."""

    def heads(linear, norm, index):
        vector = linear.weight @ x[batch, index] + linear.bias
        parts = vector.reshape(-1, layer.value_head_size if linear is layer.value else layer.head_size)
        if norm is not None:
            means = parts.square().mean(-1, keepdim=True)
            parts = parts / torch.sqrt((means.mean() if layer.norm_over == "all_heads" else means) + norm.epsilon)
            parts = parts * norm.weight.view(-1, layer.head_size)  # (1, D) or (N, D)
        return parts

    scale = layer.softmax_scale or layer.head_size**-0.5
    group = layer.num_heads // layer.num_kv_heads
    output = torch.empty_like(x)
    for batch in range(x.shape[0]):
        keys = [heads(layer.key, layer.key_norm, j) for j in range(x.shape[1])]
        values = [heads(layer.value, None, j) for j in range(x.shape[1])]
        for i in range(x.shape[1]):
            query = heads(layer.query, layer.query_norm, i)
            mixed = []
            for head in range(layer.num_heads):
                seen = [j for j in range(x.shape[1]) if (j <= i or not layer.causal)]
                if layer.window_size is not None:
                    seen = [j for j in seen if abs(i - j) < layer.window_size]
                scores = torch.tensor([float(query[head] @ keys[j][head // group]) * scale for j in seen]).double()
                if layer.soft_cap is not None:
                    scores = layer.soft_cap * torch.tanh(scores / layer.soft_cap)
                weights = scores.exp()
                total = weights.sum() + (0.0 if layer.sinks is None else layer.sinks[head].exp())
                mixed.append(sum(w / total * values[j][head // group] for w, j in zip(weights, seen, strict=True)))
            mixed = torch.cat(mixed)
            if layer.gate is not None:
                mixed = mixed / (1 + torch.exp(-(layer.gate.weight @ x[batch, i] + layer.gate.bias)))
            output[batch, i] = layer.output.weight @ mixed + layer.output.bias
    return output


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@torch.no_grad()
def test_attention_equals_loops_over_heads_queries_and_keys(options):
    layer, x = build(**options), random_input(B, T, H)
    # The loop stores its scores in float32: errors of 1e-7 of a score of a few units.
    torch.testing.assert_close(layer(x, Context()), attention_by_loops(layer, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm_over", ["head", "each_head", "all_heads"])
@torch.no_grad()
def test_norms_after_the_rotary_embedding_see_rotated_heads(norm_over):
    options = {"query_norm": RMSNorm, "key_norm": RMSNorm, "norm_over": norm_over, "rotary": Rotary}
    layer, x = build(norm_after_rotary=True, **options), random_input(B, T, H)
    query, key = (linear(x).unflatten(-1, (4, -1)) for linear in (layer.query, layer.key))
    query, key = layer.rotary(query, key, None)
    for heads, norm in ((query, layer.query_norm), (key, layer.key_norm)):
        heads.copy_(norm(heads) if norm_over == "head" else norm(heads.flatten(2)).view_as(heads))
    value = layer.value(x).unflatten(-1, (4, -1))
    mixed = attention_reference(*(part.transpose(1, 2) for part in (query, key, value)))
    torch.testing.assert_close(layer(x, Context()), layer.output(mixed.transpose(1, 2).flatten(2)))
    before = build(**options)
    before.load_state_dict(layer.state_dict())
    assert not torch.allclose(before(x, Context()), layer(x, Context()), atol=1e-3)


@pytest.mark.parametrize("num_heads", [8, 12, 3])
def test_slopes_of_alibi_are_those_of_bloom(num_heads):
    mask = torch.ones(1, 2)
    expected = build_alibi_tensor(mask, num_heads, torch.float32)[:, 0, 1]
    torch.testing.assert_close(AlibiHeads(0, num_heads, num_heads).slopes(torch.device("cpu")).float(), expected)


def slopes_in_float64(num_heads, positions):
    """The biases (B, N, 1, T) of keys, -8 n / N of N = 4 heads."""
    return (
        torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8], dtype=torch.float64)[:, None, None]
        * positions[:, None, None]
    )


def biases_of_falcon(num_heads, positions):
    """Biases of Falcon, which transformers rounds to bfloat16."""
    of_positions = falcon_biases(torch.ones(1, 300, dtype=torch.long), num_heads, torch.float64)[:, 0]  # (N, 300)
    return of_positions[:, positions].transpose(0, 1)[:, :, None] / 6**0.5


ALIBI = {
    "one slope": (slopes_in_float64, {}),
    "grouped, scale": (slopes_in_float64, {"num_kv_heads": 2, "softmax_scale": 0.7}),
    "window": (slopes_in_float64, {"window_size": 3}),
    "Falcon": (biases_of_falcon, {"scale_alibi": True}),
    "Falcon, grouped": (biases_of_falcon, {"scale_alibi": True, "num_heads": 12, "num_kv_heads": 2, "head_size": 6}),
}


@pytest.mark.parametrize(("biases", "options"), ALIBI.values(), ids=ALIBI)
@torch.no_grad()
def test_alibi_adds_a_bias_by_the_position_of_the_key(biases, options):
    layer, x = build(alibi=True, **options), random_input(B, 300, H)
    documents = (torch.arange(300) // 270).expand(B, -1)
    query, key = (p(x).unflatten(-1, (-1, 6)) for p in (layer.query, layer.key))
    positions = places_in_documents(documents)
    group = layer.num_heads // layer.num_kv_heads
    key, value = (part.repeat_interleave(group, 2) for part in (key, layer.value(x).unflatten(-1, (-1, 6))))
    scores = torch.einsum("btnd,bsnd->bnts", query, key) * (layer.softmax_scale or 6**-0.5)
    scores = scores + biases(layer.num_heads, positions)
    visible = visible_keys(300, 300, True, layer.window_size, documents, x.device)
    weights = scores.masked_fill(~visible, -math.inf).softmax(-1)
    mixed = torch.einsum("bnts,bsnd->btnd", weights, value)
    torch.testing.assert_close(layer(x, Context(positions, documents)), layer.output(mixed.flatten(2)))
    half = build(torch.bfloat16, alibi=True, **options)(x.bfloat16(), Context(positions, documents))
    exact = layer(x, Context(positions, documents))
    assert (half.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt() < 0.03


def test_rounded_biases_take_few_query_heads_to_a_key_head():
    with pytest.raises(ValueError, match="at most 8 query heads to a key head"):
        build(num_heads=12, num_kv_heads=1, head_size=6, alibi=True, scale_alibi=True)


def test_reference_equals_loops_in_gradient_too():
    """`gradcheck` differentiates numerically, so it needs no second implementation."""
    query, key, value = random_input(1, 4, 5, 3), random_input(1, 2, 5, 3, seed=1), random_input(1, 2, 5, 3, seed=2)
    function = partial(attention_reference, window_size=3, scale=0.9)
    inputs = [x.requires_grad_() for x in (query, key, value)]
    assert torch.autograd.gradcheck(function, inputs)


def test_attention_is_the_same_in_bfloat16_and_float32_up_to_rounding():
    x = random_input(B, 40, H).float()
    options = {"num_kv_heads": 2, "window_size": 9, "rotary": Rotary, "head_size": 8}
    expected = build(torch.float32, **options)(x, Context())
    actual = build(torch.bfloat16, **options)(x.bfloat16(), Context())
    assert actual.dtype == torch.bfloat16
    assert (actual.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt() < 0.02


def test_future_tokens_do_not_change_a_causal_output():
    layer, x = build(rotary=Rotary), random_input(B, T, H)
    changed = x.clone()
    changed[:, 8:] += 1.0
    before, after = layer(x, Context()), layer(changed, Context())
    torch.testing.assert_close(before[:, :8], after[:, :8], rtol=0.0, atol=1e-12)
    assert not torch.allclose(before[:, 8:], after[:, 8:])


def test_rotary_scores_depend_on_the_distance_alone():
    rotary = Rotary(8, theta=100.0)
    query, key = random_input(1, 1, 1, 8), random_input(1, 1, 1, 8, seed=1)
    scores = []
    for shift in (0, 5, 40):
        turned, _ = rotary(query, key, torch.tensor([3 + shift]))
        _, turned_key = rotary(query, key, torch.tensor([1 + shift]))
        scores.append((turned * turned_key).sum())
    # float32 angles up to 43
    torch.testing.assert_close(torch.stack(scores), scores[0].expand(3), rtol=1e-4, atol=1e-4)


def test_dropout_acts_in_training_only():
    x = random_input(B, T, H)
    layer, plain = build(dropout=0.5), build()
    torch.testing.assert_close(layer.eval()(x, Context()), plain(x, Context()))
    layer.train()
    assert not torch.allclose(layer(x, Context()), layer(x, Context()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 0}, "num_heads must be positive, not 0"),
        ({"num_heads": 5}, r"num_heads must divide hidden_size \(24\) where head_size is None, not 5"),
        ({"num_heads": 4, "num_kv_heads": 3}, r"num_kv_heads must divide num_heads \(4\), not 3"),
        ({"num_heads": 4, "num_kv_heads": -1}, "num_kv_heads must be positive"),
        ({"num_heads": 4, "head_size": 0}, "head_size must be positive"),
        ({"num_heads": 8}, "head_size must be even to be rotated in pairs, not 3"),
        ({"num_heads": 4, "window_size": 0}, "window_size must be positive"),
        ({"num_heads": 4, "softmax_scale": 0.0}, "softmax_scale must be positive"),
        ({"num_heads": 4, "soft_cap": 0.0}, "soft_cap must be positive"),
        ({"num_heads": 4, "dropout": 1.0}, "dropout must be at least 0 and below 1"),
        ({"num_heads": 4, "lr_scale": -1.0}, "lr_scale must be at least 0"),
        ({"num_heads": 4, "linear": partial(Linear, lr_scale=math.nan)}, "lr_scale must be at least 0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Attention(H, **options)


@pytest.mark.parametrize(
    ("options", "length"),
    [
        ({}, 6),
        ({"causal": False}, 6),
        ({"window_size": 3}, 7),
        ({"window_size": 3, "causal": False}, 7),
        ({"window_size": 9}, 4),
    ],
)
def test_flops_count_the_keys_that_are_visible(options, length):
    layer = Attention(H, num_heads=4, head_size=6, **options)
    reach = options.get("window_size", length)
    pairs = sum(
        (j <= i or not options.get("causal", True)) and abs(i - j) < reach for i in range(length) for j in range(length)
    )
    # For each pair and head: a product of D terms for the score and one for the value; twice that again backward.
    assert layer.training_flops_per_token(length) == pytest.approx(3 * 2 * 2 * 4 * 6 * pairs / length)
