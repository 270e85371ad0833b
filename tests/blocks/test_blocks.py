"""The residual block and repeated blocks."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from ml.blocks import DecoderBlock, Repeat
from ml.layers import Attention, Context, LayerNorm, NoNorm, RMSNorm
from ml.models import materialize

B, T, H = 2, 9, 16
ATTENTION = partial(Attention, num_heads=4)


def random_input(dtype=torch.float32) -> torch.Tensor:
    return torch.randn(B, T, H, generator=torch.Generator().manual_seed(0)).to(dtype)


class Scale(nn.Module):
    """Replaces a mixer or an MLP by a multiplication, so that a block is a formula."""

    def __init__(self, hidden_size, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x, context=None):
        return x * self.factor


def rms(x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


FORMULAS = {
    "pre": ({}, lambda x: (y := x + 2 * rms(x)) + 3 * rms(y)),
    "post": ({"norm_position": "post"}, lambda x: rms((y := rms(x + 2 * x)) + 3 * y)),
    "no MLP": ({"mlp": None}, lambda x: x + 2 * rms(x)),
    "post, no MLP": ({"mlp": None, "norm_position": "post"}, lambda x: rms(x + 2 * x)),
    "residual scale": ({"residual_scale": 0.5}, lambda x: (y := x + rms(x)) + 1.5 * rms(y)),
    "parallel": ({"parallel": True}, lambda x: x + 2 * rms(x) + 3 * rms(x)),
    "parallel, two norms": ({"parallel": True, "mlp_norm": NoNorm}, lambda x: x + 2 * rms(x) + 3 * x),
    "parallel, one norm": ({"parallel": True, "shared_norm": True, "mixer_norm": NoNorm}, lambda x: x + 2 * x + 3 * x),
    "parallel, output norms and scale": (
        {"parallel": True, "mlp_output_norm": RMSNorm, "residual_scale": 0.5},
        lambda x: x + rms(x) + 0.5 * rms(3 * rms(x)),
    ),
    "mixer norm apart": ({"mixer_norm": NoNorm}, lambda x: (y := x + 2 * x) + 3 * rms(y)),
    "MLP norm apart": ({"mlp_norm": NoNorm}, lambda x: (y := x + 2 * rms(x)) + 3 * y),
    "normalization": ({"normalization": NoNorm}, lambda x: (y := x + 2 * x) + 3 * y),
}


@pytest.mark.parametrize(("options", "formula"), FORMULAS.values(), ids=FORMULAS)
def test_block_follows_its_formula(options, formula):
    parts = {"mixer": partial(Scale, factor=2.0), "mlp": partial(Scale, factor=3.0)}
    block = materialize(DecoderBlock(H, **{**parts, **options}))
    x = random_input()
    torch.testing.assert_close(block(x, Context()), formula(x))


def test_dropout_is_active_in_training_only_and_on_the_branches_only():
    parts = {"mixer": partial(Scale, factor=2.0), "mlp": None, "normalization": NoNorm}
    block = DecoderBlock(H, dropout=0.25, **parts)
    x = random_input()
    torch.testing.assert_close(block.eval()(x, Context()), 3 * x)
    ratio = block.train()(x, Context()) / x
    kept = ratio > 1.5
    torch.testing.assert_close(ratio[kept], torch.full_like(ratio[kept], 1 + 2 / 0.75))
    torch.testing.assert_close(ratio[~kept], torch.ones_like(ratio[~kept]))
    assert 0.6 < kept.float().mean() < 0.9


def test_repeat_applies_its_blocks_in_order():
    sequence = materialize(Repeat(H, block=partial(DecoderBlock, mixer=ATTENTION), num_blocks=3))
    x = random_input()
    expected = sequence.block_2(sequence.block_1(sequence.block_0(x, Context()), Context()), Context())
    assert torch.equal(sequence(x, Context()), expected)
    assert sequence.blocks == [sequence.block_0, sequence.block_1, sequence.block_2]


def test_nested_sequences_count_the_layers_of_a_token():
    inner = partial(Repeat, block=partial(DecoderBlock, mixer=ATTENTION), num_blocks=2)
    outer = Repeat(H, block=inner, num_blocks=3)
    assert outer.num_layers == 6
    assert "block_2.block_1.mixer.query.weight" in dict(outer.named_parameters())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Repeat(H, block=partial(DecoderBlock, mixer=ATTENTION), num_blocks=0), "num_blocks must be positive"),
        (lambda: DecoderBlock(H, mixer=ATTENTION, dropout=1.5), "dropout must be at least 0 and below 1"),
        (lambda: DecoderBlock(H, mixer=ATTENTION, parallel=True, mlp=None), "parallel needs an mlp"),
        (lambda: DecoderBlock(H, mixer=ATTENTION, shared_norm=True), "shared_norm needs parallel = True"),
        (lambda: DecoderBlock(H, mixer=ATTENTION, parallel=True, norm_position="post"), "parallel needs norm_position"),
        (lambda: DecoderBlock(H, mixer=ATTENTION, lr_scale=-1.0), "lr_scale must be at least 0"),
        (lambda: DecoderBlock(H, mixer=ATTENTION, residual_scale=float("nan")), "residual_scale must be finite"),
    ],
)
def test_invalid_options_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_compiled_block_has_no_graph_break_and_equals_the_eager_one(dtype):
    mixer = partial(Attention, num_heads=4, num_kv_heads=2, query_norm=RMSNorm, key_norm=LayerNorm)
    block = materialize(DecoderBlock(H, mixer=mixer)).to(dtype)
    x = random_input(dtype)
    compiled = torch.compile(block, fullgraph=True)
    exact = copy.deepcopy(block).double()  # the eager block in bfloat16 is further from it than the compiled one
    results = []
    for module, function in ((exact, exact), (block, compiled)):
        output = function(x.to(next(module.parameters()).dtype), Context())
        output.square().sum().backward()
        results.append([output.detach(), *(parameter.grad for parameter in module.parameters())])
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]  # in bfloat16 of sums that nearly cancel
    for eager, fused in zip(*results, strict=True):
        assert (eager - fused).abs().max() <= tolerance * eager.abs().max()
