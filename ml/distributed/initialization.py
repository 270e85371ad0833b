"""Initial weights of a sharded model: each parameter is drawn by one process, which sends the others their shards."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ml.distributed.shards import Holders, empty_like, holders, local
from ml.distributed.world import World
from ml.models.materialize import Draw, ParameterPlaces, draws, materialize, reset_buffers

_Model = TypeVar("_Model", bound=nn.Module)


class OwnedDraw(NamedTuple):
    """A parameter and the rank that draws it."""

    name: str
    owner: int


def materialize_shards(
    model: _Model,
    world: World,
    device: torch.device | str,
    seed: int = 0,
    *,
    weights_on: torch.device | str | None = None,
    given: Collection[str] = (),
) -> _Model:
    """Allocates and fills a model as `materialize` does, with the same values bit for bit; a collective call.

    Each parameter is drawn once in the world, whole and on the CPU, by one of the processes that hold a part of it. The
    parameters are shared out by size, so the processes draw at the same time. Besides its own weights, a process keeps
    one whole parameter with the shards that it sends, and one shard that it received.

    Args:
        model: On the meta device, with its parameters sharded as `DTensor`s or replicated as plain tensors. Processes
            may hold different parameters.
        world: All processes.
        device: Where the shards and buffers are allocated.
        seed: Of the initial values.
        weights_on: Where the shards are allocated instead, if they are offloaded; None for `device`. Ignored for a
            single process.
        given: Names of parameters that are allocated without values, because all of them are read from files; the same
            in every process.

    Returns:
        The model.

    Raises:
        ValueError: As `materialize`.
        OtherProcessFailed: Another process raised it.
    """
    if world.size == 1:
        return materialize(model, device, seed, given)
    found = draws(model, seed)
    mine = {draw.name: draw for draw in found if draw.name not in given}
    places = ParameterPlaces(model)
    held = holders({name: draw.parameter for name, draw in mine.items()}, world)

    def place(draw: Draw, values: Tensor | None = None) -> None:
        fresh = empty_like(draw.parameter, device if weights_on is None else weights_on)
        if values is not None:
            with torch.no_grad():
                local(fresh).copy_(values)
        places.replace(draw.parameter, nn.Parameter(fresh, draw.parameter.requires_grad))

    for draw in found:
        if draw.name in given:
            place(draw)
    for turn in turns(held, world.size):
        _exchange(turn, mine, held, world, place)
    reset_buffers(model, device)
    return model


def turns(held: Mapping[str, Holders], num_ranks: int) -> list[list[OwnedDraw]]:
    """Shares out the parameters; in a turn each rank draws at most one, and those of a turn are of similar size.

    Args:
        held: The holders of each parameter.
        num_ranks: Number of processes.

    Returns:
        The turns, the same in every process.
    """
    sizes = {name: torch.Size(holding.shape).numel() for name, holding in held.items()}
    load = [0] * num_ranks
    owned: list[list[OwnedDraw]] = [[] for _ in range(num_ranks)]
    for name in sorted(held, key=lambda name: (-sizes[name], name)):
        owner = min(held[name].shards, key=lambda rank: (load[rank], rank))
        load[owner] += sizes[name]
        owned[owner].append(OwnedDraw(name, owner))
    longest = max((len(draws) for draws in owned), default=0)
    return [[draws[turn] for draws in owned if turn < len(draws)] for turn in range(longest)]


def _exchange(
    turn: Sequence[OwnedDraw],
    mine: Mapping[str, Draw],
    held: Mapping[str, Holders],
    world: World,
    place: Callable[[Draw, Tensor], None],
) -> None:
    """Draws the parameter of this rank in a turn, sends its shards, and places the local values of all in the turn."""
    drawn = [(tag, name) for tag, (name, owner) in enumerate(turn) if owner == world.rank]  # at most one
    own = world.together(lambda: [mine[name].values() for _, name in drawn])
    sent = [_sent(whole, held[name], tag, world) for (tag, name), whole in zip(drawn, own, strict=True)]
    for tag, (name, owner) in enumerate(turn):
        shard = held[name].shards.get(world.rank)
        if shard is None:
            continue
        if owner == world.rank:
            place(mine[name], shard.of(own[0]))
            continue
        values = torch.empty(shard.sizes, dtype=mine[name].parameter.dtype)
        if values.numel():
            dist.recv(values, owner, group=world.hosts, tag=tag)
        place(mine[name], values)
    for work, _ in itertools.chain(*sent):
        work.wait()


def _sent(values: Tensor, holding: Holders, tag: int, world: World) -> list[tuple[dist.Work, Tensor]]:
    """Starts to send the shards of a whole parameter to the other ranks that hold it; keeps what is being sent."""
    pieces = {shard: shard.of(values).contiguous() for shard in holding.shards.values()}
    sent = []
    for rank, shard in holding.shards.items():
        if rank != world.rank and pieces[shard].numel():
            work = dist.isend(pieces[shard], rank, group=world.hosts, tag=tag)
            assert work is not None
            sent.append((work, pieces[shard]))
    return sent
