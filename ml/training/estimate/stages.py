"""Ranks of a pipeline, whose stages differ: the first has the embeddings, the last the head."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

from ml.distributed import Layout, MeshSizes
from ml.distributed.estimate.cluster import Cluster
from ml.distributed.estimate.in_flight import Order, bubble, orders_of, peak_in_flight
from ml.distributed.estimate.kinds import in_middle_of, kinds_of_blocks
from ml.distributed.estimate.planned_world import planned_world
from ml.distributed.estimate.traffic import Collective, ranks_of
from ml.distributed.pipeline.cut import blocks_of_stages, ordered_blocks
from ml.distributed.schedules import GPipe
from ml.training.errors import RunError
from ml.training.estimate.extrapolation import extrapolated, with_blocks
from ml.training.estimate.measurements import Memory, Work, combined_memory, combined_work
from ml.training.estimate.plans import OVERLAPPED, PIPELINE_SEND, Communication, communication_of
from ml.training.estimate.settings import with_schedule
from ml.training.estimate.tracing import Traced, trace
from ml.training.trainer import Trainer

_FIRST, _MIDDLE, _LAST = range(3)  # ranks of a pipeline of three stages, in which each stage is traced


class RankOfPipeline(NamedTuple):
    """Measurements of a rank; `stages` is empty without a pipeline."""

    stages: tuple[int, ...]
    memory: Memory
    work: Work
    communication: dict[Collective, Communication]
    bubble_seconds: float


class _Stage(NamedTuple):
    """Measurements of a stage: a step of one micro-batch, and what each further one adds."""

    first: Traced
    later: Work


def ranks_of_pipeline(
    trainer: Trainer, sizes: MeshSizes, num_micro_batches: int, cluster: Cluster
) -> list[RankOfPipeline]:
    """Measures a step of the first rank of each coordinate of a pipeline.

    Args:
        trainer: The settings of the run.
        sizes: The mesh, with a pipeline.
        num_micro_batches: Number of micro-batches of a data rank.
        cluster: The machines.

    Raises:
        RunError: One rank has a tied weight in its first and its last stage.
    """
    schedule, num_ranks = trainer.mesh.schedule, sizes.pipeline
    num_stages = schedule.num_stages(num_ranks)
    first, last = schedule.ranks_of_ends(num_ranks)
    if trainer.model.tie_word_embeddings and first == last:
        raise RunError(
            f"{type(schedule).__name__} has the first and the last stage on one rank, which is not planned with "
            "LanguageModel.tie_word_embeddings: choose another Mesh.schedule"
        )
    stages = _measured_stages(trainer, sizes, cluster)
    orders = orders_of(schedule, num_ranks, num_micro_batches)
    found = []
    for coordinate, order in enumerate(orders):
        own = {index: stages[index] for index in schedule.stages_of(coordinate, num_ranks)}
        with planned_world(sizes.world_size, coordinate * (sizes.world_size // num_ranks)) as world:
            ranks = ranks_of(Layout.of(world, sizes))
        once, later = _work(own, trainer, num_ranks)
        work = combined_work([(1.0, once), (num_micro_batches, later)])
        waited_for = (one for key, one in communication_of(later, ranks, cluster).items() if key.axis not in OVERLAPPED)
        micro_batch = later.seconds + sum(one.seconds for one in waited_for)
        found.append(
            RankOfPipeline(
                stages=tuple(own),
                memory=_memory(own, num_stages, order, num_micro_batches),
                work=work,
                communication=communication_of(work, ranks, cluster),
                bubble_seconds=bubble(schedule, num_ranks) * micro_batch,
            )
        )
    return found


def _measured_stages(trainer: Trainer, sizes: MeshSizes, cluster: Cluster) -> list[_Stage]:
    """Measures each stage; of those with the same kinds of blocks and no end of the model, one."""
    kinds = kinds_of_blocks(trainer.model)
    known: dict[Hashable, _Stage] = {}
    found: list[_Stage] = []
    stages = blocks_of_stages(trainer.model, trainer.mesh.schedule, sizes.pipeline)
    for index, own in enumerate(stages):
        own_kinds = [[path for path in own if path in kind] for kind in kinds]
        place = _FIRST if index == 0 else _LAST if index == len(stages) - 1 else _MIDDLE
        key = place, tuple(map(len, own_kinds))
        if key not in known:
            known[key] = _measured(trainer, sizes, [kind for kind in own_kinds if kind], place, cluster)
        found.append(known[key])
    return found


def _measured(
    trainer: Trainer, sizes: MeshSizes, kinds: Sequence[Sequence[str]], place: int, cluster: Cluster
) -> _Stage:
    """Measures a stage in a pipeline of three, with one block of each kind and more."""
    paths = list(ordered_blocks(trainer.model))
    trainer = with_schedule(trainer, GPipe(embeddings_as_blocks=0, head_as_blocks=0))
    of_three = sizes._replace(pipeline=3)

    def traced(num_micro_batches: int) -> Callable[[list[str]], Traced]:
        def measured(kept: list[str]) -> Traced:
            model = with_blocks(trainer, kept, cluster)
            in_middle_of(model, sorted(kept, key=paths.index))
            with planned_world(of_three.world_size, place * of_three.world_size // 3) as world:
                return trace(trainer, model, Layout.of(world, of_three), num_micro_batches, cluster)

        return measured

    # Torch's schedules keep the weights of a stage gathered after a backward pass, and its gradients whole.
    first, second = (extrapolated(kinds, traced(number), gathers_all=True) for number in (1, 2))
    later = combined_work([(1.0, second.work), (-1.0, first.work)])
    return _Stage(first._replace(memory=second.memory), later)


def _memory(own: Mapping[int, _Stage], num_stages: int, order: Order, num_micro_batches: int) -> Memory:
    """Memory of the stages of a rank.

    Torch keeps a buffer of each micro-batch for the streams and for the gradients that a stage receives.
    """
    received = {
        index: ((index > 0) + (index < num_stages - 1)) * stage.first.stream_bytes for index, stage in own.items()
    }
    in_flight = peak_in_flight(order, {index: stage.first.memory.activations for index, stage in own.items()})
    return combined_memory((1.0, stage.first.memory) for stage in own.values())._replace(
        activations=in_flight + num_micro_batches * sum(received.values()),
        working=max(max(stage.first.memory.working - received[index], 0) for index, stage in own.items()),
    )


def _work(own: Mapping[int, _Stage], trainer: Trainer, num_ranks: int) -> tuple[Work, Work]:
    """Work of the stages of a rank: once in a step, and for each micro-batch."""
    schedule, num_streams = trainer.mesh.schedule, 1 if trainer.model.multi_token is None else 2
    num_stages = schedule.num_stages(num_ranks)
    once, later = [], []
    for index, stage in own.items():
        later.append((1.0, stage.later))
        once += [(1.0, stage.first.work), (-1.0, stage.later)]
        for neighbor in (index - 1, index + 1):
            if 0 <= neighbor < num_stages and neighbor not in own:
                later.append((1.0, _sends(stage.first.stream_bytes, num_streams)))
        if index in (0, num_stages - 1) and stage.first.tied_bytes:
            once.append((1.0, _sends(stage.first.tied_bytes, 1)))
    return combined_work(once), combined_work(later)


def _sends(num_bytes: float, calls: int) -> Work:
    return Work(payload={PIPELINE_SEND: num_bytes}, calls={PIPELINE_SEND: calls})
