"""Small models on the tensor axis, compared with the same model in one process."""

import copy
from typing import NamedTuple

import numpy as np
import torch
from laid_out import whole
from quick_trainers import quick_trainer
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from ml.data import Batch
from ml.distributed.initialization import materialize_shards
from ml.distributed.tensor import tensor_parallel
from ml.models import materialize

SMALL = [
    "LanguageModel.vocab_size = 256",
    "LanguageModel.hidden_size = 32",
    "decoder/Repeat.num_blocks = 2",
    "Attention.num_heads = 4",
    "Attention.num_kv_heads = 2",
    "GatedMLP.intermediate_size = 48",
]
SEED = 3
# Sums in another order: float32 has 7 digits, and the longest sums of these models have a few hundred terms.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-6, 1e-5


def small_model(bindings=()):
    """On the meta device."""
    return quick_trainer(bindings, common=SMALL).model


def batch_of(vocab_size=256, *, num_rows=3, num_tokens=16, documents=False):
    """Tokens with a loss on an unequal part of each row."""
    generator = np.random.default_rng(7)
    tokens = generator.integers(0, vocab_size, (num_rows, num_tokens + 1))
    targets = tokens[:, 1:].copy()
    for row in range(num_rows):
        targets[row, : 3 * row] = -100
    indices = np.cumsum(generator.random((num_rows, num_tokens)) < 0.2, axis=1) if documents else None
    return Batch.of(tokens[:, :-1], targets, documents=indices)


def tensor_mesh(world):
    return init_device_mesh("cpu", (world.size,), mesh_dim_names=("tensor",))


def gradients_of(model, batch, **inputs):
    """Loss and gradients of a batch, per token."""
    sums = model.loss(**batch.inputs, **inputs)
    (sums.total / batch.num_targets).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return sums, gradients


def assert_gradients_equal(found, expected):
    assert found.keys() == expected.keys()
    # The gradient of a bias that adds the same to all scores of a query is 0 but for rounding.
    least = 1e-3 * max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        difference = (whole(found[name]) - gradient).abs().max() / gradient.abs().max().clamp(min=least)
        assert difference < GRADIENT_TOLERANCE, f"{name}: {difference:.1e}"


def divided(model, world, *, sequence):
    """A copy of a model on the meta device, divided over all processes, with its initial weights."""
    model = copy.deepcopy(model)
    tensor_parallel(model, tensor_mesh(world), sequence=sequence)
    return materialize_shards(model, world, "cpu", SEED)


class OfOneProcess(NamedTuple):
    """Weights, gradients and loads of routers of one process, with the sums of its loss."""

    weights: dict[str, Tensor]
    gradients: dict[str, Tensor]
    total: Tensor
    cross_entropy: Tensor
    num_tokens: Tensor
    parts: dict[str, Tensor]
    loads: list[Tensor]


_last = []  # the last model and batch, and what one process makes of them


def _of_one_process(world, model, batch, inputs):
    """Results of the whole model in rank 0, given to all; those of the last call if it had the same model and batch."""
    if _last and _last[0] is model and _last[1] is batch and not inputs:
        return _last[2]
    found = world.first(lambda: _whole(copy.deepcopy(model), batch, inputs))
    _last[:] = [] if inputs else [model, batch, found]
    return found


def _whole(model, batch, inputs):
    one = materialize(model, "cpu", SEED)
    sums, gradients = gradients_of(one, batch, **inputs)
    weights = {name: parameter.detach() for name, parameter in one.named_parameters()}
    loads = [load for _, load in sums.loads]
    total, parts = sums.total.detach(), {name: part.detach() for name, part in sums.parts.items()}
    return OfOneProcess(weights, gradients, total, sums.cross_entropy.detach(), sums.num_tokens, parts, loads)


def assert_same_as_one_process(world, model, batch, *, sequence, **inputs):
    """Compares weights, loss, its parts and all gradients; returns the results of one process and the divided model."""
    expected = _of_one_process(world, model, batch, inputs)
    many = divided(model, world, sequence=sequence)
    weights = dict(many.named_parameters())
    for name, weight in expected.weights.items():
        assert torch.equal(whole(weights[name]), weight), name
    found, found_gradients = gradients_of(many, batch, **inputs)
    torch.testing.assert_close(found.total, expected.total, rtol=LOSS_TOLERANCE, atol=0.0)
    torch.testing.assert_close(found.cross_entropy, expected.cross_entropy, rtol=LOSS_TOLERANCE, atol=0.0)
    assert found.num_tokens == expected.num_tokens
    assert found.parts.keys() == expected.parts.keys()
    for name, part in expected.parts.items():
        torch.testing.assert_close(found.parts[name], part, rtol=1e-5, atol=1e-7)
    assert_gradients_equal(found_gradients, expected.gradients)
    return expected, many
