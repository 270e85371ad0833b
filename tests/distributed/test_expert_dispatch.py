"""Experts divided over ranks against all experts in one process."""

import itertools
from functools import partial

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from moe_cases import (
    CASES,
    GROUPED,
    NUM_SEQUENCES,
    SIGMOID,
    batch_of,
    farthest,
    measured,
    model_of,
    on_one_process,
)
from processes import run_ranks
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh

from ml.distributed.collectives import AllToAll
from ml.distributed.expert_dispatch import expert_parallel, misfit_of_experts
from ml.layers import GatedMLP, MixtureOfExperts
from ml.layers.routing import Router
from ml.models import materialize

# Both sides round in float32 with another order of summation.
CLOSE_LOSS, CLOSE_GRADIENT = 1e-6, 1e-5
TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 2**-8}  # of a whole output: one rounding

CHECKPOINTING = "DecoderBlock.activation_checkpointing = @ActivationCheckpointing"


def without_preference(model):
    """All tokens choose the first experts, which are in rank 0; the others get no row."""
    for module in model.modules():
        if isinstance(module, Router):
            torch.nn.init.zeros_(module.weight)


def difference_of(world, axis, bindings, change=None):
    expected = world.share(on_one_process(bindings, world.size, change) if world.is_first else None)
    model = model_of(bindings, partial(expert_parallel, axis=axis))
    if change is not None:
        change(model)
    batch = batch_of()
    actual = measured(model, [batch.split(NUM_SEQUENCES // world.size)[world.rank]], batch.num_targets)
    for name, gradient in actual.gradients.items():
        if ".expert_" not in name:
            dist.all_reduce(gradient)
    for name, load in expected.loads.items():
        assert torch.equal(world.sum(actual.loads[name]), load), name
    torch.testing.assert_close(world.sum(actual.loss), expected.loss, rtol=CLOSE_LOSS, atol=0.0)
    return farthest(actual.gradients, expected.gradients), set(actual.gradients), set(expected.gradients)


def differences(world, cases):
    axis = init_device_mesh("cpu", (world.size,))
    return {name: difference_of(world, axis, *arguments) for name, arguments in cases.items()}


def assert_as_on_one_process(num_ranks, cases):
    found = run_ranks(num_ranks, differences, cases)
    for name in cases:
        for rank, of_rank in enumerate(found):
            (difference, where), _, expected = of_rank[name]
            assert difference < CLOSE_GRADIENT, f"{name}, rank {rank}: {where}"
        # Each rank has gradients of its experts and of all other parameters.
        gradients = [of_rank[name][1] for of_rank in found]
        assert set.union(*gradients) == expected
        assert {name for name in expected if ".expert_" not in name} == set.intersection(*gradients)


def test_loss_gradients_and_loads_on_two_ranks():
    assert_as_on_one_process(2, {name: (bindings,) for name, bindings in CASES.items()})


def test_loss_gradients_and_loads_on_four_ranks():
    cases = {name: (CASES[name],) for name in ("softmax router", "checkpointing grouped")}
    empty = {
        "one rank has all rows": [SIGMOID],
        "grouped": [SIGMOID, GROUPED],
        "recomputed": [CHECKPOINTING],
        "recomputed grouped": [CHECKPOINTING, GROUPED],
    }
    cases |= {name: (bindings, without_preference) for name, bindings in empty.items()}
    assert_as_on_one_process(4, cases)


def layer_of(**options):
    return MixtureOfExperts(32, expert=partial(GatedMLP, intermediate_size=48), num_experts=4, **options)


def passes_of_a_layer(world):
    axis = init_device_mesh("cpu", (world.size,))
    # Ranks have different token counts.
    x = torch.randn(3 + 4 * world.rank, 32, generator=torch.Generator().manual_seed(world.rank))
    for grouped, change in itertools.product((False, True), (lambda model: None, without_preference)):
        whole, layer = layer_of(grouped=grouped), layer_of(grouped=grouped)
        expert_parallel(layer, axis)
        for module in (whole, layer):
            change(materialize(module))
        for dtype, tolerance in TOLERANCES.items():
            with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                expected, actual = whole(x).float(), layer(x).float()
            error = (actual - expected).norm() / expected.norm()
            assert error < tolerance, (grouped, change, dtype, error)
    return exchanges_of(layer, x)


def exchanges_of(layer, x):
    """Numbers of exchanges in a forward and in a backward pass."""
    calls = []
    original = functional.all_to_all_single
    functional.all_to_all_single = lambda *arguments: calls.append(1) or original(*arguments)
    y = layer(x.requires_grad_())
    forward = len(calls)
    y.sum().backward()
    return forward, len(calls) - forward


def test_passes_of_one_layer_without_gradients_and_in_bfloat16():
    # The sizes, the rows and the outputs; backward the gradients of outputs and rows.
    assert run_ranks(2, passes_of_a_layer) == [(3, 2), (3, 2)]


def all_to_all(world):
    sent = [[2, 1], [0, 3]]  # by sender and receiver
    received = [[2, 0], [1, 3]]
    x = torch.arange(3.0)[:, None] + 10 * world.rank
    x.requires_grad_()
    y = AllToAll.apply(x, received[world.rank], sent[world.rank], dist.group.WORLD)
    (y * (torch.arange(len(y))[:, None] + 100 * (world.rank + 1))).sum().backward()
    return y.flatten().tolist(), x.grad.flatten().tolist()


def test_all_to_all_sends_rows_and_returns_gradients():
    first, second = run_ranks(2, all_to_all)
    assert first == ([0.0, 1.0], [100.0, 101.0, 200.0])
    assert second == ([2.0, 10.0, 11.0, 12.0], [201.0, 202.0, 203.0])


def shapes_of_a_pass(world):
    axis = init_device_mesh("cpu", (world.size,))
    layer = materialize(layer_of(grouped=True)).to(torch.bfloat16)
    expert_parallel(layer, axis)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.randn(7, 32, dtype=torch.bfloat16, requires_grad=True)
        y = layer(x)
        y.sum().backward()
    return tuple(y.shape), tuple(x.grad.shape)


def test_a_pass_of_shapes_alone_reads_no_values():
    # A fake tensor raises where a value is read: the sizes of the exchange are the only ones.
    assert run_ranks(2, shapes_of_a_pass) == [((7, 32), (7, 32))] * 2


def test_experts_that_cannot_be_divided_are_refused():
    experts = MixtureOfExperts(8, num_experts=6)
    assert misfit_of_experts(experts, 1) is None
    assert misfit_of_experts(experts, 3) is None
    message = "MixtureOfExperts.num_experts (6) is not divisible by Mesh.expert (4), which can be 1, 2, 3 or 6"
    assert misfit_of_experts(experts, 4) == message
    several = torch.nn.ModuleList([experts, MixtureOfExperts(8, num_experts=4)])
    message = "MixtureOfExperts.num_experts (4) is not divisible by Mesh.expert (3), which can be 1 or 2"
    assert misfit_of_experts(several, 3) == message
    odd = torch.nn.ModuleList([MixtureOfExperts(8, num_experts=5), MixtureOfExperts(8, num_experts=3)])
    message = "MixtureOfExperts.num_experts (3) is not divisible by Mesh.expert (5), which can only be 1"
    assert misfit_of_experts(odd, 5) == message
    assert "has no MixtureOfExperts" in misfit_of_experts(GatedMLP(8), 2)
