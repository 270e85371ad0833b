"""Runs a function in several processes joined by gloo, forked from one process that has imported torch and Juniper."""

import contextlib
import datetime
import gc
import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable, Collection
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ml.distributed import World

# With what training, pipelines, checkpoints and the tracing of compiled blocks import late.
PRELOADED = [
    "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.pipelining",
    "torch.distributed.tensor", "torch._functorch.aot_autograd", "torch._inductor.pattern_matcher",
    "ml.api", "ml.distributed", "ml.training.rehearsal",
]  # fmt: skip


class RankFailure(AssertionError):
    """A rank raised; the message is its traceback."""


def run_ranks(
    num_ranks: int,
    function: Callable[..., Any],
    *args: Any,
    timeout: float = 240.0,
    killed: Collection[int] = (),
) -> list[Any]:
    """Runs `function(world, *args)` in `num_ranks` processes and returns their results by rank.

    Args:
        num_ranks: Number of processes.
        function: A function of a module, so that it can be pickled.
        args: Picklable arguments.
        timeout: Seconds after which all of them are killed; far more than they take.
        killed: Ranks that kill themselves, whose result is None.

    Raises:
        RankFailure: A rank raised or died; the others are killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        readers, processes = [], []
        for rank in range(num_ranks):
            reader, writer = context.Pipe(duplex=False)
            arguments = (rank, num_ranks, str(Path(folder, "rendezvous")), writer, function, args)
            process = context.Process(target=_rank, args=arguments, daemon=True)
            process.start()
            writer.close()
            readers.append(reader)
            processes.append(process)
        try:
            return _results(readers, timeout, killed)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _results(readers: list[Any], timeout: float, killed: Collection[int]) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(readers):
        pending = [reader for rank, reader in enumerate(readers) if rank not in results]
        ready = wait(pending, timeout)
        if not ready:
            raise RankFailure(f"no rank answered within {timeout} seconds; rank {sorted(results)} had finished")
        for reader in ready:
            rank = readers.index(reader)
            try:
                succeeded, value = pickle.loads(reader.recv_bytes())
            except EOFError:
                if rank in killed:
                    results[rank] = None
                    continue
                raise RankFailure(f"rank {rank} died") from None
            if not succeeded:
                raise RankFailure(f"rank {rank}:\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(readers))]


def _rank(rank: int, size: int, rendezvous: str, writer: Any, function: Callable[..., Any], args: tuple) -> None:
    gc.freeze()  # a collection of the inherited objects would copy their pages
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank))
    limit = datetime.timedelta(seconds=120)
    try:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size, timeout=limit)
        hosts = dist.new_group(backend="gloo", timeout=limit)
        result = function(World(rank, size, rank, torch.device("cpu"), hosts, limit), *args)
        answer = (True, result)
    except BaseException:
        answer = (False, traceback.format_exc())
    writer.send_bytes(pickle.dumps(answer))
    writer.close()
    with contextlib.suppress(RuntimeError):  # what this rank sent may still be on its way to the others
        if answer[0]:
            dist.barrier(group=hosts)
    os._exit(0)  # without the teardown of the process group, which waits for ranks that failed
