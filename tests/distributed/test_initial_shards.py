"""Initial weights of sharded models: those of one process, each drawn once."""

import weakref
from unittest import mock

import pytest
import torch
from laid_out import lay_out, model_of, whole
from processes import run_ranks

from ml.distributed.initialization import OwnedDraw, materialize_shards, turns
from ml.distributed.shards import Holders, Shard, local
from ml.errors import OtherProcessFailed
from ml.models import materialize
from ml.models.materialize import Draw
from ml.training.state import named_weights


def initial_weights(world, layouts):
    drawn, alive = [], []
    values = Draw.values

    def counting(draw):
        assert all(reference() is None for reference in alive), "one whole parameter at a time"
        drawn.append(draw.name)
        whole_values = values(draw)
        alive.append(weakref.ref(whole_values))
        return whole_values

    for layout, bindings in layouts:
        expected = named_weights(materialize(model_of(bindings), seed=3))
        drawn.clear()
        with mock.patch.object(Draw, "values", counting):
            model = materialize_shards(lay_out(model_of(bindings), world, layout), world, "cpu", seed=3)
        found = named_weights(model)
        if layout not in ("experts", "stages"):
            assert found.keys() == expected.keys()
        for name, tensor in found.items():
            assert torch.equal(whole(tensor), expected[name]), f"{name} in {layout}"
        parameters = {name for name, _ in model.named_parameters()}
        held = set().union(*world.gather(parameters))
        everywhere_drawn = [name for names in world.gather(list(drawn)) for name in names]
        assert sorted(everywhere_drawn) == sorted(held), f"each is drawn once in {layout}"
        assert all(tensor.requires_grad for tensor in model.parameters())
    return len(layouts)


TIED = ["LanguageModel.tie_word_embeddings = True"]
BFLOAT16 = ["Trainer.precision = @PureBFloat16"]


@pytest.mark.parametrize(
    ("num_ranks", "layouts"),
    [
        (2, [("fsdp", TIED), ("tensor", BFLOAT16), ("replicated", []), ("experts", []), ("stages", [])]),
        (3, [("fsdp", []), ("tensor", [])]),
        (4, [("hsdp", []), ("fsdp x tensor", [])]),
    ],
    ids=["2 ranks", "3 ranks", "4 ranks"],
)
def test_initial_weights_do_not_depend_on_the_layout(num_ranks, layouts):
    assert run_ranks(num_ranks, initial_weights, layouts) == [len(layouts)] * num_ranks


def offloaded(world):
    model = materialize_shards(lay_out(model_of(), world, "fsdp"), world, "meta", weights_on="cpu")
    return {local(one).device.type for one in model.parameters()}, {one.device.type for one in model.buffers()}


def test_offloaded_weights_are_on_another_device_than_buffers():
    assert run_ranks(2, offloaded) == [({"cpu"}, {"meta"})] * 2


def fails_in_rank_1(world):
    def failing(draw):
        if world.rank == 1:
            raise ValueError("planned")
        return torch.zeros(draw.parameter.shape)

    with mock.patch.object(Draw, "values", failing), pytest.raises((ValueError, OtherProcessFailed)) as raised:
        materialize_shards(lay_out(model_of(), world, "fsdp"), world, "cpu")
    return type(raised.value).__name__, str(raised.value)


def test_an_initialization_that_fails_in_one_rank_ends_all():
    (other, message), failed = run_ranks(2, fails_in_rank_1)
    assert failed == ("ValueError", "planned")
    assert other == "OtherProcessFailed"
    assert "planned" in message


def everywhere(shape, num_ranks):
    return Holders(shape, {rank: Shard((0,) * len(shape), shape) for rank in range(num_ranks)})


def test_parameters_are_shared_out_by_size():
    held = {f"matrix_{index}": everywhere((8, 8), 4) for index in range(8)}
    held |= {f"norm_{index}": everywhere((8,), 4) for index in range(3)}
    held["expert"] = Holders((8, 8), {2: Shard((0, 0), (8, 8))})
    planned = turns(held, 4)
    elements = [0] * 4
    for turn in planned:
        assert len({draw.owner for draw in turn}) == len(turn), "a rank draws one at a time"
        for name, owner in turn:
            assert owner in held[name].shards
            elements[owner] += torch.Size(held[name].shape).numel()
    assert sorted(name for turn in planned for name, _ in turn) == sorted(held)
    assert max(elements) - min(elements) <= 64  # one matrix
    assert OwnedDraw("expert", 2) in [draw for turn in planned for draw in turn]
