"""Chunked loss against the loss in one piece, and distillation against its formula."""

import pytest
import torch

from ml.layers import LanguageModelHead, Teacher
from ml.models import materialize
from ml.targets import IGNORED

B, T, H, V = 3, 7, 6, 11


def head(**options) -> LanguageModelHead:
    layer = materialize(LanguageModelHead(H, V, False, **options)).double()
    with torch.no_grad():
        layer.weight.mul_(50)  # logits of order one
    return layer


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(B, T, H, dtype=torch.float64, generator=generator).requires_grad_()
    targets = torch.randint(0, V, (B, T), generator=generator)
    targets[0, :4] = targets[2, 6] = IGNORED  # a prompt, and padding
    return x, targets, torch.randn(B, T, V, dtype=torch.float64, generator=generator)


def results(layer, teacher=None, factor=0.7, tied_weight=None):
    x, targets, teacher_logits = inputs()
    if teacher is not None:
        teacher = Teacher(teacher_logits, *teacher)
    sums = layer.loss(x, targets, tied_weight, teacher)
    (factor * sums.total).backward()
    gradients = [x.grad, *(p.grad for p in layer.parameters())]
    return [sums.total.detach(), sums.cross_entropy, sums.num_tokens, *sums.parts.values(), *gradients]


@pytest.mark.parametrize("teacher", [None, (0.3, 2.0)], ids=["text", "teacher"])
@pytest.mark.parametrize("options", [{}, {"z_loss": 0.1, "logit_soft_cap": 1.5}], ids=["plain", "z-loss and cap"])
@pytest.mark.parametrize("chunk_size", [1, 4, 21, 100])
def test_chunks_add_up_to_the_whole_in_loss_and_gradients(chunk_size, options, teacher):
    whole = results(head(**options), teacher)
    chunked = results(head(**options, loss_chunk_size=chunk_size), teacher)
    assert len(whole) == len(chunked)
    for value, expected in zip(chunked, whole, strict=True):
        # The sums are stored in float32 and use another order.
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("teacher", [None, (0.3, 2.0)], ids=["text", "teacher"])
@pytest.mark.parametrize("chunk_size", [None, 8])
def test_compiled_losses_are_those_of_eager_ones(chunk_size, teacher):
    layer = head(z_loss=0.1, loss_chunk_size=chunk_size)
    eager = results(layer, teacher)
    layer.zero_grad()
    layer.loss = torch.compile(layer.loss, backend="aot_eager")
    for value, expected in zip(results(layer, teacher), eager, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)


def test_a_tied_weight_gets_the_gradient_of_all_chunks():
    gradients = []
    for chunk_size in (None, 4):
        layer = materialize(LanguageModelHead(H, V, True, loss_chunk_size=chunk_size)).double()
        weight = torch.linspace(-1, 1, V * H, dtype=torch.float64).view(V, H).requires_grad_()
        results(layer, tied_weight=weight)
        gradients.append(weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)


def test_a_frozen_head_and_an_input_without_gradient_are_left_alone():
    layer = head(loss_chunk_size=4)
    layer.weight.requires_grad_(False)
    x, targets, _ = inputs()
    layer.loss(x, targets).total.backward()
    assert layer.weight.grad is None
    assert x.grad is not None
    with torch.no_grad():
        sums = layer.loss(x, targets)
    assert not sums.total.requires_grad


def test_logits_of_all_tokens_never_exist_at_once():
    layer = materialize(LanguageModelHead(H, 1000, False, loss_chunk_size=16))
    sizes = []
    layer.logits = lambda x, weight: sizes.append(len(x)) or x @ weight.T
    layer.loss(torch.randn(2, 40, H, requires_grad=True), torch.zeros(2, 40, dtype=torch.long)).total.backward()
    assert sizes == [16] * 5


@pytest.mark.parametrize(("weight", "temperature"), [(0.3, 2.0), (1.0, 1.0), (0.5, 0.5)])
def test_distillation_follows_its_formula(weight, temperature):
    layer = head(z_loss=0.1)
    x, targets, teacher = inputs()
    logits = layer(x)
    hard = soft = 0.0
    for token, target, expected in zip(logits.flatten(0, 1), targets.flatten(), teacher.flatten(0, 1), strict=True):
        if target != IGNORED:
            hard = hard - token.log_softmax(-1)[target] + 0.1 * token.exp().sum().log() ** 2
            p, q = (expected / temperature).softmax(-1), (token / temperature).softmax(-1)
            soft = soft + temperature**2 * (p * (p / q).log()).sum()
    total = (1 - weight) * hard + weight * soft
    expected = torch.autograd.grad(total, [x, layer.weight])
    sums = layer.loss(x, targets, teacher=Teacher(teacher, weight, temperature))
    actual = torch.autograd.grad(sums.total, [x, layer.weight])
    # The loss is float32 by contract.
    torch.testing.assert_close(sums.total.double(), total, rtol=1e-5, atol=0)
    torch.testing.assert_close(sums.parts["distillation_loss"].double(), weight * soft, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_a_prompt_without_targets_changes_no_gradient():
    layer = head()
    x, targets, _ = inputs()
    layer.loss(x, targets).total.backward()
    assert x.grad[targets == IGNORED].eq(0).all()
    assert x.grad[targets != IGNORED].ne(0).any(-1).all()


@pytest.mark.parametrize("chunk_size", [1, 64])
def test_the_gradient_of_a_bfloat16_weight_is_summed_in_float32(chunk_size):
    generator = torch.Generator().manual_seed(0)
    x, targets = torch.randn(1, 2048, 16, generator=generator), torch.randint(0, 32, (1, 2048), generator=generator)
    gradients = []
    for dtype, size in ((torch.float64, None), (torch.bfloat16, chunk_size)):
        layer = materialize(LanguageModelHead(16, 32, False, loss_chunk_size=size)).to(torch.bfloat16).to(dtype)
        layer.loss(x.bfloat16().to(dtype), targets).total.backward()
        gradients.append(layer.weight.grad.double())
    # Each logit and each gradient of a chunk is rounded to 2^-9; the sum over 2,048 chunks of one adds nothing.
    assert (gradients[1] - gradients[0]).norm() / gradients[0].norm() < 0.006


def test_a_chunk_of_no_tokens_is_refused():
    with pytest.raises(ValueError, match="loss_chunk_size must be positive"):
        LanguageModelHead(H, V, False, loss_chunk_size=0)
