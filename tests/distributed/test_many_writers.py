"""Checkpoints that many processes write: what is in the files, plans, failures and kills."""

import errno
import itertools
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import run_ranks
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from ml.distributed.shards import local
from ml.errors import OtherProcessFailed
from ml.training import Checkpoints, RunFailure
from ml.training.checkpoints import atomic_folders, saver, state_files
from ml.training.checkpoints.atomic_folders import damage
from ml.training.checkpoints.policy import newest_checkpoint
from ml.training.checkpoints.state_files import Snapshot
from ml.training.checkpoints.tensor_files import read_tensors

SHAPES = {"even": (8, 6), "uneven": (3, 5), "wide": (6, 4), "both": (12, 4), "replicated": (40, 10), "tied": (5, 4)}


def whole(name, step=1):
    """The values of a tensor as one process would hold them."""
    generator = torch.Generator().manual_seed(len(name) + 100 * step)
    return torch.randn(SHAPES.get(name, (4, 3)), generator=generator)


def tensors_of(world, mesh, step=1):
    """Tensors in every kind of placement, as rank `world.rank` of 4 holds them."""
    placed = {
        "even": [Shard(0), Replicate()],
        "uneven": [Replicate(), Shard(0)],
        "wide": [Replicate(), Shard(1)],
        "both": [Shard(0), Shard(1)],
        "replicated": [Replicate(), Replicate()],
    }
    tensors = {
        name: distribute_tensor(whole(name, step), mesh, placements, src_data_rank=None)
        for name, placements in placed.items()
    }
    flat = mesh._flatten()
    tensors["few rows"] = distribute_tensor(whole("few rows", step)[:3], flat, [Shard(0)], src_data_rank=None)
    tensors |= {name: whole(name, step) for name in ("buffer", "counter")}
    tensors["step"] = torch.tensor(float(step))
    stage = world.rank // 2
    tensors[f"stage {stage}"] = whole(f"stage {stage}", step)
    if stage != 0 or world.rank == 1:
        tensors["tied"] = whole("tied", step)
    for rows in (8, 7):
        name = f"strided {rows}"
        layer = torch.nn.Linear(3, rows, bias=False)
        weight = distribute_tensor(whole_rows(name, rows, step), mesh["tensor"], [Shard(0)], src_data_rank=None)
        layer.weight = torch.nn.Parameter(weight)
        fully_shard(layer, mesh=mesh["data"])
        tensors[name] = layer.weight.detach()
    return tensors


def whole_rows(name, rows, step):
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(rows + 1000 * step))


def expected(step=1):
    values = {name: whole(name, step) for name in [*SHAPES, "buffer", "counter", "stage 0", "stage 1"]}
    values["few rows"] = whole("few rows", step)[:3]
    values["step"] = torch.tensor(float(step))
    return values | {f"strided {rows}": whole_rows(f"strided {rows}", rows, step) for rows in (8, 7)}


def taken(step, tensors):
    return Snapshot(step, tensors, {"step": step, "untouched": []}, "# operative\n")


def mesh_of(world):
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))


def saved(checkpoint, scratch):
    """All tensors of a checkpoint, by torch's own converter."""
    dcp_to_torch_save(checkpoint, scratch / "all.pt")
    return torch.load(scratch / "all.pt")


def saves_three(world, folder):
    """Saves steps 1, 2 and 3; the last one with a further tensor. Returns what the writing thread and the plans did."""
    mesh, calls, planned = mesh_of(world), [], []
    for name in ("all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list", "all_reduce"):
        setattr(dist, name, noted(getattr(dist, name), name, calls))
    planner = torch.distributed.checkpoint.DefaultSavePlanner
    planner.create_local_plan = noted(planner.create_local_plan, "plan", planned)
    writer = Checkpoints(keep=None).open(Path(folder), lambda: None, world)
    for step in (1, 2, 3):
        tensors = tensors_of(world, mesh, step)
        if step == 3:
            tensors["new"] = whole("new")
        writer.save(taken(step, tensors))
        for tensor in tensors.values():
            local(tensor).zero_()  # the next step changes them
    writer.wait()
    with_other_placements(world, mesh, Path(folder) / "step_3")
    return [name for name, thread in calls if thread.startswith("checkpoint")], len(planned)


def with_other_placements(world, mesh, checkpoint):
    """Reads the tensors, each in another placement than the one it was written in."""
    placements = itertools.cycle([[Shard(0), Replicate()], [Replicate(), Shard(0)], [Shard(1), Shard(0)]])
    into = {
        name: torch.zeros(value.shape)
        if value.dim() < 2
        else distribute_tensor(torch.zeros(value.shape), mesh, next(placements), src_data_rank=None)
        for name, value in expected(3).items()
    }
    read_tensors(checkpoint, into)
    for name, value in expected(3).items():
        found = into[name].full_tensor() if hasattr(into[name], "full_tensor") else into[name]
        assert torch.equal(found, value), name


def noted(function, name, calls):
    def call(*arguments, **options):
        calls.append((name, threading.current_thread().name))
        return function(*arguments, **options)

    return call


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    return folder, run_ranks(4, saves_three, str(folder))


def test_what_many_write_is_the_state_at_the_time_of_the_call(three, tmp_path):
    folder, _ = three
    for step in (1, 2, 3):
        found = saved(folder / f"step_{step}", tmp_path)
        values = expected(step) | ({"new": whole("new")} if step == 3 else {})
        assert found.keys() == values.keys()
        for name, value in values.items():
            assert torch.equal(found[name], value), (step, name)


def test_each_process_writes_a_file_and_what_several_hold_is_written_once(three):
    folder, _ = three
    sizes = [(folder / f"step_3/__{rank}_0.distcp").stat().st_size for rank in range(4)]
    num_bytes = sum(value.numel() * value.element_size() for value in expected().values())
    num_chunks = 2 + 2 + 2 + 4 + 4 + 4 + 4 + 7 + 1 + 1  # torch.save adds some to each
    assert num_bytes < sum(sizes) < num_bytes + 3000 * num_chunks
    assert max(sizes) < 0.5 * sum(sizes)
    assert damage(folder / "step_3") is None


def test_the_thread_takes_part_in_one_exchange_a_save_and_plans_are_made_once(three):
    _, results = three
    for of_thread, num_plans in results:
        assert of_thread == ["gather_object"] * 3
        assert num_plans == 2  # the first, and one for the further tensor


def fails(world, folder):
    """Saves step 1; then a rank cannot write step 2, rank 0 cannot seal it, and the folder vanishes. Step 3 works."""
    mesh, told = mesh_of(world), []
    writer = Checkpoints(keep=1).open(Path(folder), lambda: None, world)
    writer.save(taken(1, tensors_of(world, mesh, 1)))
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for rank, module, name, error in (
        (1, state_files, "write_tensors", full),
        (3, atomic_folders, "flush_to_disk", full),
        (0, saver, "publish", full),
        (2, state_files, "write_tensors", KeyError("unexpected")),
    ):
        original = getattr(module, name)
        writer.wait()
        if world.rank == rank:
            setattr(module, name, raising(error))
        told.append(outcome(lambda: writer.save(taken(2, tensors_of(world, mesh, 2))), writer.wait))
        setattr(module, name, original)
    world.first(lambda: setattr(saver, "begin", lambda folder: None))
    told.append(outcome(lambda: writer.save(taken(2, tensors_of(world, mesh, 2))), writer.wait))
    saver.begin = atomic_folders.begin
    assert world.first(lambda: sorted(path.name for path in Path(folder).iterdir())) == ["step_1"]
    writer.save(taken(3, tensors_of(world, mesh, 3)))
    writer.wait()
    return told


def raising(error):
    def fail(*_):
        raise error

    return fail


def outcome(*calls):
    try:
        for call in calls:
            call()
    except (RunFailure, OtherProcessFailed) as error:
        return type(error).__name__, str(error)
    return None


def test_a_rank_that_cannot_write_ends_the_save_of_all_and_leaves_the_last_one(tmp_path):
    folder = tmp_path / "checkpoints"
    of_ranks = run_ranks(4, fails, str(folder))
    for case, (first, *others) in enumerate(zip(*of_ranks, strict=True)):
        reason = [*["No space left on device"] * 3, "KeyError: 'unexpected'", "No such file or directory"][case]
        assert first[0] == "RunFailure"
        assert f"step 2 could not be written to {folder}: {reason}; the one of step 1 is untouched" in first[1]
        assert set(others) == {("OtherProcessFailed", f"rank 0: {first[1]}")}
    assert [path.name for path in folder.iterdir()] == ["step_3"]
    assert newest_checkpoint(folder, pytest.fail) == folder / "step_3"


OWNERS = {"saver": saver, "torch": torch, "path": Path}
INSTANTS = [  # the rank that is killed, the call at which it is, and whether it is made
    (1, "saver.write_part", "before"),
    (1, "torch.save", "before"),  # in a file that is begun
    (1, "saver.sealed", "after"),
    (0, "torch.save", "before"),
    (0, "path.write_text", "before"),
    (0, "saver.publish", "before"),
    (0, "path.rename", "before"),  # the second one: the first is of the index
    (0, "path.rename", "after"),
]


def is_killed(world, folder, victim, call, moment):
    """Saves step 1, then step 2 while the victim is killed; returns what a survivor is told."""
    mesh = init_device_mesh("cpu", (2,))
    writer = Checkpoints(keep=1).open(Path(folder), lambda: None, world)
    writer.save(taken(1, sharded(mesh, 1)))
    writer.wait()
    if world.rank == victim:
        owner, name = call.split(".")
        original, calls = getattr(OWNERS[owner], name), itertools.count(1)
        is_reached = lambda: next(calls) == (2 if call in ("torch.save", "path.rename") else 1)  # noqa: E731
        setattr(OWNERS[owner], name, killed_at(original, moment, is_reached))
    try:
        writer.save(taken(2, sharded(mesh, 2)))
        writer.wait()
    except Exception as error:  # gloo's own, or that of the checkpoint
        writer.close()
        return str(error)
    return None


def sharded(mesh, step):
    values = {name: whole(name, step) for name in ("even", "wide")}
    tensors = {name: distribute_tensor(value, mesh, [Shard(0)], src_data_rank=None) for name, value in values.items()}
    return tensors | {"step": torch.tensor(float(step))}


def killed_at(original, moment, is_reached):
    def call(*arguments, **options):
        is_here = is_reached()
        if is_here and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **options)
        if is_here:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return call


@pytest.mark.parametrize(("victim", "call", "moment"), INSTANTS)
def test_a_kill_of_any_rank_leaves_the_old_checkpoint_or_the_new_one(tmp_path, victim, call, moment):
    folder = tmp_path / "checkpoints"
    told = run_ranks(2, is_killed, str(folder), victim, call, moment, killed=[victim])
    assert told[victim] is None
    assert told[1 - victim]
    is_published = (call, moment) == ("path.rename", "after")
    said = []
    newest = newest_checkpoint(folder, said.append)
    assert newest == folder / ("step_2" if is_published else "step_1")
    step = int(newest.name.removeprefix("step_"))
    found = saved(newest, tmp_path)
    assert all(torch.equal(found[name], whole(name, step)) for name in ("even", "wide"))
    assert all(damage(path) is None for path in folder.iterdir())
