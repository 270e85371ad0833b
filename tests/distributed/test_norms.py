"""Norms and clipping over shards, replicas, experts and stages."""

import pytest
import torch
from laid_out import DispatchCount, lay_out, model_of
from processes import run_ranks
from torch import nn

from ml.distributed import World
from ml.distributed.norms import clip_, local_squares, replicas, scale_
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
        clip_(gradients(model).values(), norm, max_norm=0.5)
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
    norms = torch.stack([torch.zeros(()) if one is None else one.norm() for one in gradients(torchs).values()])
    assert torch.equal(found.sqrt().float(), norms)  # the square of a float32 is exact in float64
    norm = torch.linalg.vector_norm(norms)
    clip_(gradients(ours).values(), norm, max_norm=1.0)
    nn.utils.clip_grads_with_norm_(torchs.parameters(), 1.0, norm)
    for name, gradient in gradients(ours).items():
        assert (gradient is None) == (name == _NONE)
        assert gradient is None or torch.equal(gradient, torchs.get_parameter(name).grad)


def test_without_any_gradient_the_norms_are_0():
    parameters = {"a": nn.Parameter(torch.zeros(4)), "b": nn.Parameter(torch.zeros(2, 2))}
    counted = replicas(parameters, World())
    assert local_squares({"a": None, "b": None}, counted).tolist() == [0.0, 0.0]
    scale_([None, None], torch.tensor(0.5))


def dispatches(world):
    """Counts operations on DTensors while norms are computed and gradients clipped."""
    model = lay_out(model_of(), world, "fsdp").to_empty(device="cpu")
    set_gradients(model)
    counted = replicas(dict(model.named_parameters()), world)
    with DispatchCount() as ours:
        clip_(gradients(model).values(), world.sum(local_squares(gradients(model), counted)).sum().sqrt(), 1.0)
    with DispatchCount() as torchs:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return ours.number, torchs.number > 0


def test_no_operation_is_dispatched_on_distributed_tensors():
    assert set(run_ranks(2, dispatches)) == {(0, True)}
