"""Rotary embeddings against the frequencies of transformers, and against complex numbers."""

from functools import partial

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ml.layers import (
    Attention,
    DynamicRotary,
    LatentAttention,
    LinearRotary,
    Llama3Rotary,
    Rotary,
    TwoDimensionalRotary,
    YarnRotary,
)
from ml.layers.context import Context, places_in_documents
from ml.models import materialize

LENGTH = 40
CASES = {
    "linear": (LinearRotary, {"factor": 2.5}, {"rope_type": "linear", "factor": 2.5}),
    "dynamic, short": (
        DynamicRotary,
        {"factor": 3.0, "original_length": 64},
        {"rope_type": "dynamic", "factor": 3.0, "original_max_position_embeddings": 64},
    ),
    "dynamic, long": (
        DynamicRotary,
        {"factor": 3.0, "original_length": 16},
        {"rope_type": "dynamic", "factor": 3.0, "original_max_position_embeddings": 16},
    ),
    "Llama 3": (
        Llama3Rotary,
        {"factor": 8.0, "low_frequency_factor": 1.5, "high_frequency_factor": 5.0, "original_length": 32},
        {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.5, "high_freq_factor": 5.0,
            "original_max_position_embeddings": 32,
        },
    ),
    "YaRN": (
        YarnRotary,
        {"factor": 4.0, "original_length": 32},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    ),
    "YaRN, its ends": (
        YarnRotary,
        {"factor": 4.0, "original_length": 32, "beta_fast": 9.0, "beta_slow": 0.5, "truncate": False},
        {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 9.0,
            "beta_slow": 0.5, "truncate": False,
        },
    ),
    "YaRN, a factor of its own": (
        YarnRotary,
        {"factor": 4.0, "original_length": 32, "attention_factor": 0.7},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 0.7},
    ),
}  # fmt: skip


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("theta", [100.0, 10_000.0])
@pytest.mark.parametrize(("rotary", "options", "theirs"), CASES.values(), ids=CASES)
def test_frequencies_and_factors_are_those_of_transformers(rotary, options, theirs, theta, fraction):
    parameters = {**theirs, "rope_theta": theta, "partial_rotary_factor": fraction}
    longest = theirs.get("original_max_position_embeddings", 64)
    config = LlamaConfig(hidden_size=48, num_attention_heads=2, head_dim=24, max_position_embeddings=longest)
    config.rope_parameters = parameters
    frequencies, factor = ROPE_INIT_FUNCTIONS[theirs["rope_type"]](config, torch.device("cpu"), seq_len=LENGTH)
    layer = rotary(24, theta=theta, fraction=fraction, **options)
    torch.testing.assert_close(layer.frequencies(torch.arange(LENGTH)), frequencies, rtol=1e-5, atol=0)
    assert layer.attention_factor == pytest.approx(factor)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_pairs_rotate_by_the_angle_of_the_paper_and_other_channels_are_unchanged(fraction, interleaved):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 6, 2, 8, dtype=torch.float64, generator=generator)
    turned, _ = Rotary(8, theta=50.0, fraction=fraction, interleaved=interleaved)(x, x, None)
    size = int(8 * fraction)
    for pair in range(size // 2):
        first, second = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + size // 2)
        angles = torch.arange(6, dtype=torch.float64)[None, :, None] * 50.0 ** (-2 * pair / size)
        expected = torch.complex(x[..., first], x[..., second]) * torch.polar(torch.ones_like(angles), angles)
        torch.testing.assert_close(turned[..., first], expected.real, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(turned[..., second], expected.imag, rtol=1e-5, atol=1e-6)
    assert torch.equal(turned[..., size:], x[..., size:])


def test_in_two_dimensions_scores_depend_on_the_distance_in_rows_and_columns_alone():
    rotary = TwoDimensionalRotary(8, theta=20.0)
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 1, 1, 8, dtype=torch.float64, generator=generator) for _ in range(2))

    def score(here, there):
        turned, _ = rotary(query, key, torch.tensor([here]))
        _, turned_key = rotary(query, key, torch.tensor([there]))
        return (turned * turned_key).sum()

    expected = score((3, 5), (1, 4))
    torch.testing.assert_close(score((7, 5), (5, 4)), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(score((3, 9), (1, 8)), expected, rtol=1e-5, atol=1e-6)
    assert not torch.isclose(score((3, 5), (1, 3)), expected, rtol=1e-3)
    assert not torch.isclose(score((3, 5), (2, 4)), expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(Rotary, 8, theta=0.0), "theta must be positive"),
        (partial(Rotary, 7), "head_size must be even"),
        (partial(Rotary, 8, fraction=0.0), "fraction must be above 0"),
        (partial(Rotary, 8, fraction=0.4), "fraction must be even"),
        (partial(LinearRotary, 8, factor=-1.0), "factor must be positive"),
        (partial(DynamicRotary, 8, factor=0.5), "factor must be at least 1"),
        (partial(DynamicRotary, 8, original_length=0), "original_length must be positive"),
        (partial(DynamicRotary, 2), "more than one pair"),
        (partial(Llama3Rotary, 8, low_frequency_factor=4.0), "high_frequency_factor must be above"),
        (partial(YarnRotary, 8, beta_fast=0.5), "beta_fast must be above beta_slow"),
        (partial(YarnRotary, 8, attention_factor=0.0), "attention_factor must be positive"),
        (partial(TwoDimensionalRotary, 6), "head_size must be a multiple of 4"),
    ],
)
def test_invalid_options_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_two_dimensions_need_rows_and_columns():
    x = torch.zeros(1, 3, 1, 8)
    with pytest.raises(ValueError, match="needs rows and columns"):
        TwoDimensionalRotary(8)(x, x, torch.arange(3))


@pytest.mark.parametrize(
    ("rotary", "decodes"), [(Rotary, True), (YarnRotary, True), (DynamicRotary, False), (None, True)]
)
def test_attention_decodes_where_a_rotation_stays_what_it_was(rotary, decodes):
    assert Attention(64, num_heads=2, rotary=rotary).decodes is decodes
    if rotary is not None:
        sizes = {"head_size": 32, "rotary_size": 32, "value_head_size": 32, "key_value_rank": 16}
        assert LatentAttention(64, num_heads=2, rotary=rotary, **sizes).decodes is decodes


def test_a_packed_document_is_rotated_by_its_own_length():
    """Whatever the documents beside it, and in other rows, are."""
    lengths = (3, 9, 6)
    documents = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths)).expand(2, -1).clone()
    documents[1] = 0
    rotary = partial(DynamicRotary, original_length=4)
    layer = materialize(Attention(16, num_heads=2, rotary=rotary)).double()
    x = torch.randn(2, sum(lengths), 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    packed = layer(x, Context(places_in_documents(documents), documents))
    alone = torch.cat([layer(part, Context()) for part in x[:1].split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(packed[:1], alone, rtol=1e-6, atol=1e-6)  # angles are float32
    torch.testing.assert_close(packed[1:], layer(x[1:], Context()), rtol=1e-6, atol=1e-6)
    unlike = materialize(Attention(16, num_heads=2)).double()
    assert not torch.allclose(packed, unlike(x, Context(places_in_documents(documents), documents)), rtol=1e-3)


@pytest.mark.parametrize("make", [Rotary, partial(DynamicRotary, original_length=16), YarnRotary])
def test_a_compiled_rotation_equals_the_eager_one_in_one_graph(make):
    rotary = make(8)
    query, key = torch.randn(2, LENGTH, 4, 8), torch.randn(2, LENGTH, 2, 8)
    compiled = torch.compile(rotary, backend="aot_eager", fullgraph=True)
    assert all(map(torch.equal, compiled(query, key, None), rotary(query, key, None)))
