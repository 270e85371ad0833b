"""Rotary embeddings against the frequencies of transformers, and against complex numbers."""

from functools import partial

import pytest
import torch
from transformers import DeepseekV3Config, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

import ml
from ml.distributed import Layout, World
from ml.distributed.mesh import Mesh
from ml.distributed.parallelize import parallelize
from ml.layers import (
    Attention,
    DynamicRotary,
    LatentAttention,
    LinearRotary,
    Llama3Rotary,
    LongRotary,
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
    "YaRN, DeepSeek's mscale": (
        YarnRotary,
        {"factor": 4.0, "original_length": 32, "mscale": 0.7, "mscale_all_dim": 1.3},
        {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "mscale": 0.7,
            "mscale_all_dim": 1.3,
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


@pytest.mark.parametrize("length", [16, 17, 40])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_long_rotary_has_the_frequencies_of_transformers_for_each_length(length, fraction):
    short, long = ([base + 0.25 * pair for pair in range(int(12 * fraction))] for base in (1.0, 2.0))
    config = LlamaConfig(hidden_size=48, num_attention_heads=2, head_dim=24, max_position_embeddings=64)
    config.rope_parameters = {
        "rope_type": "longrope", "short_factor": short, "long_factor": long, "rope_theta": 500.0,
        "original_max_position_embeddings": 16, "partial_rotary_factor": fraction,
    }  # fmt: skip
    frequencies, factor = ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"), seq_len=length)
    options = {"theta": 500.0, "fraction": fraction, "factor": 4.0, "original_length": 16, "long_factors": long}
    layer = LongRotary(24, short_factors=short, **options)
    torch.testing.assert_close(layer.frequencies(torch.arange(length)), frequencies, rtol=1e-5, atol=0)
    assert layer.attention_factor == pytest.approx(factor)
    x = torch.randn(1, length, 1, 24, generator=torch.Generator().manual_seed(0))
    turned, _ = layer(x, x, None)
    angles = torch.arange(length)[:, None] * frequencies
    size = 2 * len(short)
    first, second = x[0, :, 0, : size // 2], x[0, :, 0, size // 2 : size]
    torch.testing.assert_close(turned[0, :, 0, : size // 2], factor * (first * angles.cos() - second * angles.sin()))
    constant = LongRotary(24, **options)
    expected = (
        frequencies if length > 16 else ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"), seq_len=40)[0]
    )
    torch.testing.assert_close(constant.frequencies(torch.arange(length)), expected, rtol=1e-5, atol=0)
    assert (layer.depends_on_length, constant.depends_on_length) == (True, False)


def test_latent_attention_scales_its_softmax_by_mscale_as_deepseek():
    yarn = partial(YarnRotary, factor=40.0, original_length=16, mscale=1.0, mscale_all_dim=1.0)
    rotary_scale = YarnRotary(4, factor=40.0, original_length=16, mscale=1.0, mscale_all_dim=1.0).attention_factor
    config = DeepseekV3Config(qk_nope_head_dim=8, qk_rope_head_dim=4, num_hidden_layers=1, num_attention_heads=2)
    config.rope_parameters = {
        "rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 16, "mscale": 1.0,
        "mscale_all_dim": 1.0, "rope_theta": 1e4,
    }  # fmt: skip
    theirs = DeepseekV3Attention(config, 0)
    layer = LatentAttention(24, num_heads=2, head_size=8, rotary_size=4, rotary=yarn)
    assert layer.softmax_scale == pytest.approx(theirs.scaling)
    assert layer.softmax_scale == pytest.approx(1.87385 * 12**-0.5, rel=1e-5)
    assert rotary_scale == 1.0


def test_latent_attention_without_rotary_does_not_see_positions():
    layer = materialize(LatentAttention(24, num_heads=2, head_size=8, rotary_size=4, rotary=None))
    x = torch.randn(1, 5, 24, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([2, 0, 3, 1, 4])
    torch.testing.assert_close(layer(x[:, order], Context())[:, -1], layer(x, Context())[:, -1])
    turned = materialize(LatentAttention(24, num_heads=2, head_size=8, rotary_size=4))
    turned.load_state_dict(layer.state_dict())
    assert not torch.allclose(turned(x, Context()), layer(x, Context()), atol=1e-6)


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
        (
            partial(LongRotary, 8, long_factors=[1.0] * 3),
            "long_factors must be 4, one for each pair, or one for all, not 3",
        ),
        (partial(LongRotary, 4, long_factors=[1.0, 0.0]), "long_factors must be positive"),
        (partial(YarnRotary, 8, mscale_all_dim=-1.0), "mscale_all_dim must be at least 0"),
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
    ("rotary", "decodes"),
    [
        (Rotary, True), (YarnRotary, True), (DynamicRotary, False), (None, True),
        (partial(LongRotary, long_factors=[2.0], short_factors=[1.0]), True),
    ],
)  # fmt: skip
def test_attention_decodes_where_a_rotation_stays_what_it_was(rotary, decodes):
    assert Attention(64, num_heads=2, rotary=rotary).decodes is decodes
    if rotary is not None:
        sizes = {"head_size": 32, "rotary_size": 32, "value_head_size": 32, "key_value_rank": 16}
        assert LatentAttention(64, num_heads=2, rotary=rotary, **sizes).decodes is decodes


LONG = partial(LongRotary, original_length=4, long_factors=[1.0, 2.0, 3.0, 9.0], short_factors=[1.0] * 4, factor=2.0)


@pytest.mark.parametrize("rotary", [partial(DynamicRotary, original_length=4), LONG], ids=["dynamic", "long"])
def test_a_packed_document_is_rotated_by_its_own_length(rotary):
    """Whatever the documents beside it, and in other rows, are."""
    lengths = (3, 9, 6)
    documents = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths)).expand(2, -1).clone()
    documents[1] = 0
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


@pytest.mark.parametrize("compile", [False, True])
def test_layers_that_turn_alike_share_one_table_in_a_pass(monkeypatch, compile):
    made = []
    angles = Rotary.angles
    monkeypatch.setattr(Rotary, "angles", lambda self, positions: made.append(self.theta) or angles(self, positions))
    sizes = ["decoder/Repeat.num_blocks = 3", "LanguageModel.hidden_size = 16", "GatedMLP.intermediate_size = 8"]
    model = ml.build(ml.load("base.gin", [*sizes, "block_2/Rotary.theta = 77.0", "Attention.num_kv_heads = 4"]))
    parallelize(model, Layout(World()), Mesh(), compile=compile)
    tokens = torch.arange(12).view(2, 6)
    made.clear()  # of the check on fake tensors
    for _ in range(2):
        model.loss(tokens, tokens).total.backward()
    assert made == 2 * [model.decoder.block_0.mixer.rotary.theta, 77.0]
