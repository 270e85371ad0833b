"""One optimizer step: accumulation, clipping, precision."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ml.data import Batch
from ml.layers import LossSums
from ml.training import AdamW, Float32, MixedBFloat16, PureBFloat16
from ml.training.optimizers import group_parameters
from ml.training.precision import cast_parameters
from ml.training.state import TrainState
from ml.training.step import train_step

CPU = torch.device("cpu")


class Bigram(nn.Module):
    """The smallest language model, in whatever type its weights have."""

    def __init__(self, vocab_size=11):
        super().__init__()
        self.table = nn.Embedding(vocab_size, 6)
        self.out = nn.Linear(6, vocab_size)

    def loss(self, tokens, targets):
        logits = self.out(torch.tanh(self.table(tokens)))
        total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-100)
        return LossSums(total, total.detach(), (targets != -100).sum())


def make_state(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    model = Bigram().to(dtype)
    groups = group_parameters((name, parameter, 1.0, None) for name, parameter in model.named_parameters())
    optimizer = AdamW(learning_rate=0.01).create(groups)
    return TrainState(model, optimizer, groups, torch.zeros((), dtype=torch.int64))


def uneven_batch():
    """Six sequences with 7, 1, 0, 3, 7 and 2 valid targets."""
    random = np.random.default_rng(1)
    tokens, targets = random.integers(0, 11, (6, 7)), random.integers(0, 11, (6, 7))
    for row, valid in enumerate([7, 1, 0, 3, 7, 2]):
        targets[row, valid:] = -100
    return Batch.of(tokens, targets)


def gradients_of_mean_loss(state, batch):
    """The oracle: one backward pass through torch's own mean over the valid targets."""
    logits = state.model.out(torch.tanh(state.model.table(batch.tokens)))
    loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-100)
    return loss, torch.autograd.grad(loss, list(state.model.parameters()))


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 4, 6])
def test_micro_batches_with_uneven_valid_targets_make_the_step_of_the_whole_batch(micro_batch_size):
    batch, state, oracle = uneven_batch(), make_state(), make_state()
    expected_loss, gradients = gradients_of_mean_loss(oracle, batch)
    result = train_step(state, batch.split(micro_batch_size), Float32(), None, CPU)
    for parameter, gradient in zip(oracle.model.parameters(), gradients, strict=True):
        parameter.grad = gradient
    oracle.optimizer.step()
    # The loss is summed up in float32 on the way; the weights are float64 throughout.
    assert result.loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
    assert result.grad_norm.item() == pytest.approx(math.sqrt(sum(g.square().sum().item() for g in gradients)))
    for ours, theirs in zip(state.model.parameters(), oracle.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert (state.step, state.tokens) == (1, 20)


@pytest.mark.parametrize("max_grad_norm", [0.01, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clipped_steps_are_those_of_torch(max_grad_norm, dtype):
    batch, state, oracle = uneven_batch(), make_state(dtype=dtype), make_state(dtype=dtype)
    settings = {"lr": 0.01, "betas": (0.9, 0.95), "weight_decay": 0.1, "fused": False}
    optimizer = torch.optim.AdamW(oracle.model.parameters(), **settings)
    for _ in range(3):
        _, gradients = gradients_of_mean_loss(oracle, batch)
        for parameter, gradient in zip(oracle.model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        norm = nn.utils.clip_grad_norm_(oracle.model.parameters(), max_grad_norm)
        optimizer.step()
        result = train_step(state, [batch], Float32(), max_grad_norm, CPU)
        assert result.grad_norm.item() == pytest.approx(norm.item())
    for ours, theirs in zip(state.model.parameters(), oracle.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        for key, mean in optimizer.state[
            theirs
        ].items():  # an update is nearly the same without clipping, a mean is not
            torch.testing.assert_close(state.optimizer.state[ours][key], mean, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_norm_of_each_gradient_is_measured_before_clipping_in_the_order_of_the_parameters(dtype):
    state = make_state(dtype=dtype)
    state.model.out.bias.requires_grad_(False)  # never gets a gradient
    seen = []
    for parameter in state.model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: seen.append((p, p.grad.double().norm().item())))
    result = train_step(state, [uneven_batch()], Float32(), 0.01, CPU)
    measured = {id(parameter): norm for parameter, norm in seen}
    expected = [measured.get(id(parameter), 0.0) for parameter in state.trained().values()]
    assert 0.0 in expected
    # Sums of squares are kept in float32 where the gradients are in less.
    assert result.grad_norms.tolist() == pytest.approx(expected, rel=1e-6 if dtype != torch.float64 else 1e-14)
    assert result.grad_norm.item() == pytest.approx(math.sqrt(sum(norm**2 for norm in expected)), rel=1e-6)


def test_the_first_step_that_is_not_finite_is_remembered():
    state = make_state()
    for step in range(1, 6):
        if step == 3:
            state.model.out.weight.data.fill_(math.nan)
        train_step(state, [uneven_batch()], Float32(), 1.0, CPU)
        assert state.first_nonfinite_step.item() == (3 if step >= 3 else 0)


def test_a_gradient_that_overflows_counts_as_not_finite():
    state = make_state()
    state.model.out.bias.register_hook(lambda gradient: gradient * math.inf)
    result = train_step(state, [uneven_batch()], Float32(), None, CPU)
    assert result.loss.isfinite()
    assert state.first_nonfinite_step.item() == 1


@pytest.mark.parametrize(
    ("precision", "weights", "products"),
    [
        (Float32, torch.float32, torch.float32),
        (MixedBFloat16, torch.float32, torch.bfloat16),
        (PureBFloat16, torch.bfloat16, torch.bfloat16),
    ],
)
def test_a_precision_decides_the_types_of_weights_products_and_optimizer_state(tiny, precision, weights, products):
    trainer = tiny(f"Trainer.precision = @{precision.__name__}")
    state = trainer.start(CPU)
    seen = set()
    query = state.model.decoder.block_0.mixer.query
    query.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    dataset = trainer.data.open(trainer.sequence_length, 0)
    losses = [
        train_step(state, trainer.batches(dataset, step), trainer.precision, 1.0, CPU).loss.item()
        for step in range(1, 9)
    ]
    assert {parameter.dtype for parameter in state.model.parameters()} == {weights}
    moments = [tensor for entry in state.optimizer.state.values() for key, tensor in entry.items() if key != "step"]
    assert {tensor.dtype for tensor in moments} == {weights}
    assert seen == {products}
    assert losses[-1] < losses[0]


def test_casting_leaves_buffers_as_they_are():
    model = nn.BatchNorm1d(3)
    cast_parameters(model, torch.bfloat16)
    assert model.weight.dtype == torch.bfloat16
    assert model.running_mean.dtype == torch.float32
