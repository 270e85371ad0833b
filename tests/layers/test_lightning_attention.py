"""Lightning attention against transformers and its recurrence; mixers side by side against their sum."""

from functools import partial

import pytest
import torch
from transformers import MiniMaxConfig
from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

from ml.blocks import DecoderBlock
from ml.layers import Attention, Context, LightningAttention, Linear, Mamba2, ParallelMixer
from ml.models import materialize

H, N, D = 24, 4, 6


def build(**options) -> LightningAttention:
    layer = materialize(LightningAttention(H, num_heads=N, head_size=D, linear=partial(Linear, bias=False), **options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return layer


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_outputs_and_gradients_are_those_of_transformers():
    config = MiniMaxConfig(
        hidden_size=H, num_attention_heads=N, head_dim=D, num_hidden_layers=4, block_size=5, rms_norm_eps=1e-5
    )
    oracle = MiniMaxLightningAttention(config, layer_idx=1)
    layer = build(decay_scale=1 - 1 / (3 + 1e-5) + 1e-5)
    parts = [getattr(layer, name).weight.unflatten(0, (N, D)) for name in ("query", "key", "value")]
    oracle.load_state_dict(
        {
            "qkv_proj.weight": torch.cat(parts, dim=1).flatten(0, 1),  # of each head in turn
            "norm.weight": layer.norm.weight,
            "output_gate.weight": layer.gate.weight,
            "out_proj.weight": layer.output.weight,
        },
        strict=False,
    )
    x, gradient = random(2, 13, H).requires_grad_(), random(2, 13, H, seed=2)
    expected, found = oracle(x, None, None)[0], layer(x, Context())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(y, x, gradient)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_chunks_follow_the_recurrence():
    layer, x = build(norm=None, chunk_size=4).double(), random(1, 11, H).double()
    query, key, value = (
        torch.nn.functional.silu(part(x)).unflatten(-1, (N, D))[0] for part in (layer.query, layer.key, layer.value)
    )
    state, outputs = torch.zeros(N, D, D, dtype=torch.float64), []
    decay = torch.exp(-torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8], dtype=torch.float64))
    for q, k, v in zip(query, key, value, strict=True):
        state = decay[:, None, None] * state + k[:, :, None] * v[:, None]
        outputs.append((q[:, None] @ state).flatten())
    expected = layer.output(torch.stack(outputs)[None] * torch.sigmoid(layer.gate(x)))
    torch.testing.assert_close(layer(x, Context()), expected)


SCALES = {"attention": 0.5, "ssm": 3.0}


@pytest.mark.parametrize(("inputs", "outputs"), [(None, None), (SCALES, None), (None, SCALES), (SCALES, SCALES)])
def test_mixers_side_by_side_are_summed(inputs, outputs):
    mixers = {"attention": partial(Attention, num_heads=4), "ssm": partial(Mamba2, head_size=8)}
    layer = materialize(ParallelMixer(H, mixers=mixers, input_scales=inputs, output_scales=outputs))
    x = random(2, 7, H)
    inputs, outputs = inputs or {}, outputs or {}
    expected = sum(
        outputs.get(name, 1.0) * getattr(layer, name)(inputs.get(name, 1.0) * x, Context()) for name in mixers
    )
    torch.testing.assert_close(layer(x, Context()), expected)
    assert DecoderBlock(H, mixer=partial(ParallelMixer, mixers=mixers)).num_branches == 3


def test_scales_of_other_mixers_are_refused():
    with pytest.raises(ValueError, match="input_scales must be given for full"):
        ParallelMixer(H, mixers={"full": partial(Attention, num_heads=4)}, input_scales={"other": 1.0})
