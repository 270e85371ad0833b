"""The processes of a run, their mesh, and the place of each in it."""

import dataclasses
import datetime
import itertools

import pytest
import torch
import torch.distributed as dist
from processes import RankFailure, run_ranks

from ml.distributed import Layout, Mesh, MeshError, MeshSizes, World
from ml.distributed.world import started
from ml.errors import OtherProcessFailed, UserError


def exchanges(world):
    rank = world.rank
    assert world.sum(torch.tensor([1.0, rank])).tolist() == [3.0, 3.0]
    assert world.host_sum([rank, 10]) == [3, 30]
    assert world.share({"folder": rank} if world.is_first else None) == {"folder": 0}
    assert world.gather(rank * rank) == [0, 1, 4]
    return rank


def test_exchanges_between_processes():
    assert run_ranks(3, exchanges) == [0, 1, 2]


def test_a_single_process_exchanges_with_itself():
    world = World()
    assert world.is_first
    assert world.sum(torch.tensor([1.0])).tolist() == [1.0]
    assert world.host_sum([3, 4]) == [3, 4]
    assert world.share("folder") == "folder"
    assert world.gather(5) == [5]


def fails_in(world, rank, error):
    def function():
        if world.rank == rank:
            raise error
        return world.rank

    try:
        world.together(function)
    except OtherProcessFailed as other:
        return str(other), other.exit_code
    except (UserError, RuntimeError) as own:
        return str(own)
    return "no error"


def test_an_error_of_one_process_ends_all():
    ours, theirs = run_ranks(2, fails_in, 0, UserError("no such file"))
    assert ours == "no such file"
    assert theirs == ("rank 0: no such file", 2)
    assert run_ranks(2, fails_in, 1, RuntimeError("bug")) == [("rank 1: bug", 1), "bug"]


def fails_in_rank_1(world):
    if world.rank == 1:
        raise RuntimeError("planned")
    world.barrier()


def test_a_rank_that_raises_is_reported():
    with pytest.raises(RankFailure, match=r"planned|rank 0"):
        run_ranks(2, fails_in_rank_1)


def places(world, sizes):
    layout = Layout.of(world, sizes)
    ones = torch.ones(1)
    return layout.data_rank, layout.coordinate("tensor"), layout.sum(ones).item(), world.host_sum([layout.reads_first])


@pytest.mark.parametrize(
    "sizes",
    [
        MeshSizes(data_replicate=2, data_shard=2),
        MeshSizes(data_shard=4, expert=2),
        MeshSizes(data_shard=2, tensor=2),
        MeshSizes(data_shard=2, context=2),
        MeshSizes(pipeline=2, data_shard=2),
    ],
)
def test_each_part_of_the_batch_is_counted_once(sizes):
    found = run_ranks(4, places, sizes)
    parts = {data_rank for data_rank, *_ in found}
    assert parts == set(range(sizes.num_data_ranks))
    assert all(total == [sizes.num_data_ranks] for *_, total in found)
    # Context and pipeline ranks measure parts of a sequence's loss, tensor ranks all measure the same.
    assert all(total == 4 / sizes.tensor for *_, total, _ in found)


def waits_alone(world):
    layout = Layout.of(
        dataclasses.replace(world, limit=datetime.timedelta(seconds=1)), MeshSizes(data_shard=2, tensor=2)
    )
    lost = []
    for mesh in (layout.axis("tensor"), layout.fully_sharded):
        if world.is_first:
            try:
                dist.all_reduce(torch.ones(1), group=mesh.get_group())
            except RuntimeError as error:
                lost.append("timed out" in str(error).lower())
    world.barrier()
    return lost


def test_a_collective_of_an_axis_waits_no_longer_than_the_limit():
    assert run_ranks(4, waits_alone, timeout=60.0)[0] == [True, True]


def limit_of_started(world):
    with started(world.device, 77.0) as joined:
        joined.barrier()  # a process that ends breaks the connections that another is still making
        return joined.limit.total_seconds()


def test_the_timeout_is_the_limit_of_the_world():
    assert run_ranks(2, limit_of_started) == [77.0, 77.0]


@pytest.mark.parametrize("world_size", range(1, 17))
def test_the_rest_of_the_processes(world_size):
    for tensor, replicate in itertools.product((1, 2, 3), (1, 2)):
        mesh = Mesh(tensor=tensor, data_replicate=replicate)
        if world_size % (tensor * replicate):
            with pytest.raises(MeshError, match=f"{world_size} processes"):
                mesh.sizes(world_size)
        else:
            sizes = mesh.sizes(world_size)
            assert sizes.data_shard == world_size // (tensor * replicate)
            assert sizes.world_size == world_size


def test_a_mesh_of_another_size_is_refused_with_its_size():
    with pytest.raises(MeshError, match=r"Mesh \(data_shard 2 x tensor 4\) is for 8 processes, and there are 4"):
        Mesh(data_shard=2, tensor=4).sizes(4)
    with pytest.raises(MeshError, match=r"Mesh.expert \(3\) does not divide Mesh.data_shard \(4\)"):
        Mesh(expert=3).sizes(4)
