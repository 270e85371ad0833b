"""Norms and clipping over shards, replicas, experts and stages."""

import math

import pytest
import torch
from laid_out import DispatchCount, lay_out, model_of
from processes import run_ranks
from torch import nn

from ml.distributed import World
from ml.distributed.norms import clip_divisor, divide_, local_squares, replicas
from ml.distributed.shards import empty_like, local, shard_of
from ml.models import materialize

_NONE = "decoder.block_0.mixer.query.weight"  # has no gradient


def gradient_of(name, shape, scale=1.0):
    generator = torch.Generator().manual_seed(sum(name.encode()))
    return torch.randn(shape, generator=generator) * scale


def set_gradients(model, scale=1.0):
    for name, parameter in model.named_parameters():
        if name != _NONE:
            parameter.grad = empty_like(parameter, "cpu")
            local(parameter.grad).copy_(shard_of(parameter).of(gradient_of(name, parameter.shape, scale)))


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def norms_and_clipping(world, layouts):
    expected = {
        name: 0.0 if name == _NONE else torch.linalg.vector_norm(gradient_of(name, one.shape).double()).item()
        for name, one in model_of().named_parameters()
    }
    for layout in layouts:
        model = lay_out(model_of(), world, layout).to_empty(device="cpu")
        set_gradients(model)
        counted = replicas(dict(model.named_parameters()), world)
        assert len(set(world.gather(counted.names))) == 1, "the same order in every rank"
        assert set(counted.names) == expected.keys()
        squares = world.sum(local_squares(gradients(model), counted))
        found = dict(zip(counted.names, squares.sqrt().tolist(), strict=True))
        assert found == pytest.approx(expected, rel=1e-6), layout  # norms of shards are float32

        norm = squares.sum().sqrt().float()
        divide_(gradients(model).values(), clip_divisor(norm, max_norm=0.5))
        clipped = world.sum(local_squares(gradients(model), counted)).sum().sqrt()
        assert clipped.item() == pytest.approx(0.5, rel=1e-6)
    return len(layouts)


@pytest.mark.parametrize(
    ("num_ranks", "layouts"),
    [(2, ["fsdp", "tensor", "replicated", "experts", "stages"]), (3, ["fsdp"]), (4, ["hsdp", "fsdp x tensor"])],
    ids=["2 ranks", "3 ranks", "4 ranks"],
)
def test_norms_of_shards_are_those_of_whole_gradients(num_ranks, layouts):
    assert run_ranks(num_ranks, norms_and_clipping, layouts) == [len(layouts)] * num_ranks


def test_one_process_clips_as_torch_does():
    ours, torchs = (materialize(model_of()) for _ in range(2))
    set_gradients(ours)
    set_gradients(torchs)
    found = local_squares(gradients(ours), replicas(dict(ours.named_parameters()), World()))
    norms = [0.0 if one is None else one.double().norm().item() for one in gradients(torchs).values()]
    assert found.sqrt().tolist() == pytest.approx(norms, rel=1e-6)  # sums of squares in float32
    divide_(gradients(ours).values(), clip_divisor(found.sum().sqrt().float(), max_norm=1.0))
    nn.utils.clip_grad_norm_(torchs.parameters(), 1.0)
    for name, gradient in gradients(ours).items():
        assert (gradient is None) == (name == _NONE)
        if gradient is not None:
            torch.testing.assert_close(gradient, torchs.get_parameter(name).grad, rtol=1e-6, atol=0.0)


def norm_of(gradient):
    parameters = {"a": nn.Parameter(torch.empty_like(gradient))}
    return local_squares({"a": gradient}, replicas(parameters, World())).sqrt().float().item()


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "gradient",
    [
        torch.full((2**11, 2**11), 0.1),  # a sum in one float32 is off by 1e-3
        random(3 * 2**18 + 17),
        random(1024, 1024)[:, ::2],
        random(1024, 512).t(),
        torch.full((2**20,), 1.5e16),  # the sum of squares is near the largest float32
        torch.full((3,), 1e-18),
        torch.tensor(-3.0),
        torch.empty(0, 4),
    ],
    ids=["equal", "pieces", "not contiguous", "transposed", "large", "small", "scalar", "empty"],
)
def test_a_norm_is_that_of_float64(gradient):
    assert norm_of(gradient) == pytest.approx(gradient.double().norm().item(), rel=1e-4)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("index", [0, 2**18, 2**18 + 16])
def test_an_entry_that_is_not_finite_is_in_the_norm(value, index):
    gradient = torch.ones(2**18 + 17)
    gradient[index] = value
    assert norm_of(gradient) == pytest.approx(abs(value), nan_ok=True)


@pytest.mark.parametrize(("norm", "divisor"), [(0.0, 1.0), (1.9, 1.0), (6.0, 3.0), (math.inf, math.inf)])
def test_gradients_are_divided_by_what_their_norm_exceeds_the_limit_by(norm, divisor):
    found = clip_divisor(torch.tensor(norm), 2.0).item()
    assert found == (pytest.approx(divisor, rel=1e-6) if norm > 2.0 else 1.0)
    assert math.isnan(clip_divisor(torch.tensor(math.nan), 2.0).item())


def test_without_any_gradient_the_norms_are_0():
    parameters = {"a": nn.Parameter(torch.zeros(4)), "b": nn.Parameter(torch.zeros(2, 2))}
    counted = replicas(parameters, World())
    assert local_squares({"a": None, "b": None}, counted).tolist() == [0.0, 0.0]
    divide_([None, None], torch.tensor(2.0))


def dispatches(world):
    """Counts operations on DTensors while norms are computed and gradients clipped."""
    model = lay_out(model_of(), world, "fsdp").to_empty(device="cpu")
    set_gradients(model)
    counted = replicas(dict(model.named_parameters()), world)
    with DispatchCount() as ours:
        norm = world.sum(local_squares(gradients(model), counted)).sum().sqrt()
        divide_(gradients(model).values(), clip_divisor(norm, 1.0))
    with DispatchCount() as torchs:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return ours.number, torchs.number > 0


def test_no_operation_is_dispatched_on_distributed_tensors():
    assert set(run_ranks(2, dispatches)) == {(0, True)}
