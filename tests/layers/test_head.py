"""The head and the loss against formulas in float64."""

import math

import pytest
import torch

from ml.layers import LanguageModelHead, cross_entropy_sums, normal
from ml.layers.loss import cpu_sums, plain_sums
from ml.models import materialize

B, T, H, V = 2, 7, 6, 11


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(B, T, H, dtype=torch.float64, generator=generator)
    targets = torch.randint(0, V, (B, T), generator=generator)
    targets[0, 2] = targets[1, 0] = targets[1, 6] = -100
    return x.to(dtype), targets


def head(**options) -> LanguageModelHead:
    layer = materialize(LanguageModelHead(H, V, False, **options)).double()
    with torch.no_grad():
        layer.weight.mul_(50)  # logits of order one
    return layer


def expected_sums(logits, targets, z_loss):
    """Returns the sums, computed one token at a time."""
    total = cross_entropy = 0.0
    for token_logits, target in zip(logits.reshape(-1, V), targets.flatten(), strict=True):
        if target != -100:
            log_z = token_logits.exp().sum().log()
            cross_entropy = cross_entropy + log_z - token_logits[target]
            total = total + log_z - token_logits[target] + z_loss * log_z**2
    return total, cross_entropy


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize(
    ("z_loss", "soft_cap", "scale", "bias"), [(0, None, 1, 0), (0.3, 0.8, 1, 0), (0.3, 0.8, 1.7, 1)]
)
def test_loss_and_gradients_follow_the_formula(z_loss, soft_cap, scale, bias, chunk_size):
    options = {"z_loss": float(z_loss), "logit_soft_cap": soft_cap, "logit_scale": float(scale), "bias": bool(bias)}
    layer = head(**options, bias_initialization=normal, loss_chunk_size=chunk_size)
    x, targets = inputs()
    normed = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    weight = layer.weight.detach().clone().requires_grad_()
    shift = torch.zeros(V) if layer.bias is None else layer.bias.detach().clone()
    logits = scale * (normed @ weight.T + shift.requires_grad_())
    if soft_cap is not None:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    total, cross_entropy = expected_sums(logits, targets, z_loss)
    total.backward()

    sums = layer.loss(x, targets)
    sums.total.backward()
    # The loss is float32 by contract.
    torch.testing.assert_close(layer(x), logits)
    torch.testing.assert_close(sums.total.double(), total, rtol=1e-6, atol=0)
    torch.testing.assert_close(sums.cross_entropy.double(), cross_entropy, rtol=1e-6, atol=0)
    torch.testing.assert_close(layer.weight.grad, weight.grad, rtol=1e-5, atol=1e-6)
    if layer.bias is not None:
        torch.testing.assert_close(layer.bias.grad, shift.grad, rtol=1e-5, atol=1e-6)
    assert sums.num_tokens == 11
    assert not sums.cross_entropy.requires_grad


def test_sums_of_parts_add_up_to_the_sums_of_the_whole():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(4, 9, V, generator=generator)
    targets = torch.randint(0, V, (4, 9), generator=generator)
    targets[:2, 3:] = -100
    whole = cross_entropy_sums(logits, targets, 0.1)
    parts = [cross_entropy_sums(logits[i : i + 1], targets[i : i + 1], 0.1) for i in range(4)]
    for name in ("total", "cross_entropy", "num_tokens"):
        torch.testing.assert_close(sum(getattr(part, name) for part in parts), getattr(whole, name))
    torch.testing.assert_close(whole.mean, whole.total / (3 + 3 + 9 + 9))


def test_a_batch_without_targets_has_loss_zero_and_no_gradient():
    logits = torch.randn(2, 3, V, requires_grad=True)
    sums = cross_entropy_sums(logits, torch.full((2, 3), -100), 0.5)
    sums.mean.backward()
    assert (sums.total, sums.mean, sums.num_tokens) == (0, 0, 0)
    assert logits.grad.eq(0).all()


@pytest.mark.parametrize("sums_of", [cpu_sums, plain_sums, torch.compile(cpu_sums, backend="aot_eager")])
@pytest.mark.parametrize("vocab_size", [300, 9000])  # 9,000: in several blocks
def test_loss_of_bfloat16_logits_is_computed_in_float32(vocab_size, sums_of):
    generator = torch.Generator().manual_seed(3)
    logits = (4 * torch.randn(200, vocab_size, generator=generator)).bfloat16().requires_grad_()
    targets = torch.randint(0, vocab_size, (200,), generator=generator)
    targets[50:60] = -100
    actual, actual_cross_entropy = sums_of(logits, targets, 1e-3)
    (0.5 * actual).backward()
    exact = logits.detach().double().requires_grad_()
    log_z = exact.logsumexp(-1)
    cross_entropy = log_z - exact.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    total = (cross_entropy + 1e-3 * log_z**2)[targets >= 0].sum()
    (0.5 * total).backward()
    assert actual.item() == pytest.approx(total.item(), rel=1e-6)
    assert actual_cross_entropy.item() == pytest.approx(cross_entropy[targets >= 0].sum().item(), rel=1e-6)
    # Only the last step rounds to bfloat16: half a unit of 2^-8 relative.
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=2**-8, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"z_loss": 0.1, "logit_soft_cap": 5.0}, {"loss_chunk_size": 4}], ids=str)
def test_a_compiled_loss_has_the_value_and_the_gradients_of_the_eager_one(options):
    layer = head(**options)
    x, targets = inputs()
    results = []
    for loss in (layer.loss, torch.compile(layer.loss, backend="aot_eager")):
        layer.zero_grad()
        stream = x.clone().requires_grad_()
        sums = loss(stream, targets)
        sums.total.backward()
        results.append([sums.total, sums.cross_entropy, sums.num_tokens, stream.grad, layer.weight.grad])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"z_loss": -1e-4}, "z_loss must be at least 0"),
        ({"logit_soft_cap": 0.0}, "logit_soft_cap must be positive"),
        ({"lr_scale": -math.inf}, "lr_scale must be at least 0"),
    ],
)
def test_invalid_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LanguageModelHead(H, V, False, **options)
