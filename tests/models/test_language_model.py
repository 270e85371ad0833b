"""The model around its layers: names, ties, meta device, scales, precision, FLOPs."""

import copy
from functools import partial

import pytest
import torch

from ml.blocks import DecoderBlock, Repeat
from ml.layers import Attention, Embeddings, GatedMLP, LanguageModelHead, Linear, PositionEmbedding, RMSNorm
from ml.models import LanguageModel, flops_per_token, named_parameters_with_scales

V, H = 50, 16
ATTENTION = partial(Attention, num_heads=4, num_kv_heads=2)


def build(block=partial(DecoderBlock, mixer=ATTENTION), num_blocks=2, **options) -> LanguageModel:  # noqa: B008
    decoder = options.pop("decoder", partial(Repeat, block=block, num_blocks=num_blocks))
    return LanguageModel(vocab_size=V, hidden_size=H, decoder=decoder, **options)


def test_parameter_names_are_the_scopes_of_the_contract():
    mixer = partial(Attention, num_heads=4, query_norm=RMSNorm, key_norm=RMSNorm)
    mlp = partial(GatedMLP, linear=partial(Linear, bias=False))
    with torch.device("meta"):
        model = build(
            partial(DecoderBlock, mixer=mixer, mlp=mlp),
            num_blocks=1,
            embeddings=partial(Embeddings, position=PositionEmbedding),
        )
    attention = [f"{part}.{name}" for part in ("query", "key", "value", "output") for name in ("weight", "bias")]
    block = [
        "mixer_norm.weight",
        *(f"mixer.{name}" for name in [*attention, "query_norm.weight", "key_norm.weight"]),
        "mlp_norm.weight",
        *(f"mlp.{part}.weight" for part in ("gate", "up", "down")),
    ]
    assert [name for name, _ in model.named_parameters()] == [
        "embeddings.token.weight",
        "embeddings.position.weight",
        *(f"decoder.block_0.{name}" for name in block),
        "head.weight",
        "head.norm.weight",
    ]
    assert list(model.state_dict()) == [name for name, _ in model.named_parameters()]


def test_building_on_meta_allocates_nothing():
    with torch.device("meta"):
        model = LanguageModel(
            vocab_size=10**7,
            hidden_size=2**13,
            decoder=partial(Repeat, num_blocks=3, block=partial(DecoderBlock, mixer=partial(Attention, num_heads=64))),
        )
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert sum(parameter.numel() for parameter in model.parameters()) > 10**11


def test_a_tied_head_shares_its_weight_and_the_state_dict_holds_it_once():
    model = build(tie_word_embeddings=True)
    assert model.tied_weight is model.embeddings.token.weight
    assert "head.weight" not in model.state_dict()
    assert "head.weight" in build().state_dict()


SIX_HALVES = partial(
    Repeat,
    lr_scale=0.5,
    num_blocks=2,
    block=partial(
        DecoderBlock,
        lr_scale=0.5,
        mixer=partial(ATTENTION, lr_scale=0.5, linear=partial(Linear, lr_scale=0.5)),
        mlp=partial(GatedMLP, lr_scale=0.5),
    ),
)


def test_learning_rate_scales_multiply_along_the_path():
    model = build(decoder=SIX_HALVES, lr_scale=0.5)
    settings = model.decoder.block_1.mixer.query.parameter_settings
    settings["weight"] = settings["weight"]._replace(lr_scale=0.5)
    scales = {scaled.name: scaled.lr_scale for scaled in named_parameters_with_scales(model)}
    assert scales["decoder.block_1.mixer.query.weight"] == 0.015625  # six halves
    assert scales["decoder.block_0.mixer.query.weight"] == 0.5**5
    assert scales["decoder.block_0.mlp.up.weight"] == 0.5**4
    assert scales["decoder.block_0.mlp_norm.weight"] == 0.5**3
    assert scales["embeddings.token.weight"] == 0.5


FROZEN = {
    "model": ({"lr_scale": 0.0}, ""),
    "decoder": ({"decoder": partial(SIX_HALVES, lr_scale=0.0)}, "decoder."),
    "embeddings": ({"embeddings": partial(Embeddings, lr_scale=0.0)}, "embeddings."),
    "head": ({"head": partial(LanguageModelHead, lr_scale=0.0)}, "head."),
    "head norm": ({"head": partial(LanguageModelHead, normalization=partial(RMSNorm, lr_scale=0.0))}, "head.norm."),
}


@pytest.mark.parametrize(("options", "prefix"), FROZEN.values(), ids=FROZEN)
def test_a_scale_of_zero_freezes_what_lies_below_and_nothing_else(options, prefix):
    model = build(**options)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(prefix), name


def test_frozen_parameters_get_no_gradient_and_leave_the_others_alone(materialized):
    tokens = torch.arange(20).view(2, 10)
    free = materialized(build())
    frozen = materialized(
        build(decoder=partial(Repeat, lr_scale=0.0, num_blocks=2, block=partial(DecoderBlock, mixer=ATTENTION)))
    )
    for model in (free, frozen):
        model.loss(tokens, tokens).mean.backward()
    for (name, parameter), other in zip(frozen.named_parameters(), free.parameters(), strict=True):
        if name.startswith("decoder."):
            assert parameter.grad is None
        else:
            assert torch.equal(parameter.grad, other.grad), name


def test_weight_decay_spares_biases_and_norms():
    decays = {scaled.name: scaled.weight_decay for scaled in named_parameters_with_scales(build())}
    spared = {name for name, decay in decays.items() if decay == 0.0}
    assert spared == {name for name in decays if name.endswith("bias") or "norm" in name}
    assert {decay for name, decay in decays.items() if name not in spared} == {None}


def test_a_parameter_that_was_not_built_by_parameter_is_refused():
    model = build()
    model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"extra\.weight was not built by `Parameter`"):
        list(named_parameters_with_scales(model))


@pytest.mark.parametrize("tied", [False, True])
def test_a_deep_copy_is_apart_and_keeps_ties_and_settings(materialized, tied):
    model = materialized(build(tie_word_embeddings=tied))
    duplicate = copy.deepcopy(model)
    expected = [(s.name, s.lr_scale, s.weight_decay) for s in named_parameters_with_scales(model)]
    assert [(s.name, s.lr_scale, s.weight_decay) for s in named_parameters_with_scales(duplicate)] == expected
    tokens = torch.arange(8)[None]
    before = model(tokens)
    assert torch.equal(duplicate(tokens), before)
    with torch.no_grad():
        for parameter in duplicate.parameters():
            parameter.zero_()
    assert torch.equal(model(tokens), before)


def residual_stream(model: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    context = model.context(tokens)
    return model.decoder(model.embed(tokens, context), context)


@pytest.mark.parametrize("tied", [False, True])
def test_autocast_computes_in_bfloat16_over_a_float32_residual_stream(materialized, tied):
    model = materialized(build(tie_word_embeddings=tied))
    tokens = torch.arange(24).view(2, 12)
    expected = model.loss(tokens, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(tokens).dtype == torch.bfloat16
        assert residual_stream(model, tokens).dtype == torch.float32
        sums = model.loss(tokens, tokens)
    sums.mean.backward()
    assert sums.total.dtype == torch.float32
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())
    torch.testing.assert_close(sums.total, expected.total, rtol=1e-3, atol=0)  # bfloat16 logits: 2^-9 of a few units


def test_pure_bfloat16_stays_in_bfloat16(materialized):
    model = materialized(build()).bfloat16()
    tokens = torch.arange(24).view(2, 12)
    assert residual_stream(model, tokens).dtype == torch.bfloat16
    sums = model.loss(tokens, tokens)
    sums.mean.backward()
    assert sums.total.dtype == torch.float32
    assert all(parameter.grad.dtype == torch.bfloat16 for parameter in model.parameters())


@pytest.mark.parametrize("tied", [False, True])
def test_flops_are_six_for_each_matrix_entry_and_twelve_for_each_score(tied):
    mlp = partial(GatedMLP, intermediate_size=20)
    model = build(partial(DecoderBlock, mixer=ATTENTION, mlp=mlp), num_blocks=3, tie_word_embeddings=tied)
    matrices = 3 * (2 * H * H + 2 * H * H // 2 + 3 * 20 * H) + V * H
    attention = 3 * 12 * H * (11 + 1) / 2  # heads times head size is H; half of the keys are visible
    assert flops_per_token(model, 11) == pytest.approx(6 * matrices + attention)


def test_flops_grow_by_the_attention_alone():
    model = build(num_blocks=3)
    assert flops_per_token(model, 201) - flops_per_token(model, 101) == pytest.approx(3 * 12 * H * 50)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be positive"),
        ({"hidden_size": -4}, "hidden_size must be positive"),
        ({"lr_scale": -0.1}, "lr_scale must be at least 0"),
    ],
)
def test_wrong_options_are_named(options, message):
    decoder = partial(Repeat, num_blocks=1, block=partial(DecoderBlock, mixer=ATTENTION))
    with pytest.raises(ValueError, match=message):
        LanguageModel(**{"vocab_size": V, "hidden_size": H, "decoder": decoder, **options})
