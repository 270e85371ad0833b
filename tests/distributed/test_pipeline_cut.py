"""The cut of a model into stages, without processes."""

import copy
import itertools
import re

import pytest
import torch
from quick_trainers import quick_config, quick_trainer

from ml.blocks import BlockSequence
from ml.distributed.pipeline.cut import cut, misfit_of_stages, sizes_of_stages
from ml.distributed.schedules import (
    GPipe,
    InterleavedOneForwardOneBackward,
    InterleavedZeroBubble,
    OneForwardOneBackward,
    ZeroBubbleV,
)
from ml.models import LanguageModel, materialize
from ml.models.flops import flops_per_token

TINY = [
    "LanguageModel.vocab_size = 256",
    "LanguageModel.hidden_size = 32",
    "decoder/Repeat.num_blocks = 4",
    "Attention.num_heads = 4",
    "Attention.num_kv_heads = 2",
    "GatedMLP.intermediate_size = 64",
]
TIED = ["LanguageModel.tie_word_embeddings = True", "Embeddings.position = @PositionEmbedding"]
SCHEDULES = [
    GPipe(),
    OneForwardOneBackward(),
    InterleavedOneForwardOneBackward(),
    InterleavedZeroBubble(),
    ZeroBubbleV(),
]


def model_of(*bindings):
    return quick_trainer(bindings, common=TINY).model


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("bindings", [[], TIED, ["LanguageModel.multi_token = @MultiTokenPrediction"]])
def test_the_ranks_together_hold_the_model_with_its_names_depths_and_values(schedule, bindings):
    whole = model_of(*bindings)
    wanted = materialize(copy.deepcopy(whole), seed=3).state_dict()
    held = []
    for rank in range(2):
        model = copy.deepcopy(whole)
        stages = cut(model, schedule, rank, 2)
        assert model.decoder.num_layers == whole.decoder.num_layers
        assert flops_per_token(model, 128) == flops_per_token(whole, 128)
        assert {id(p) for stage in stages for p in stage.parameters()} == set(map(id, model.parameters()))
        held.append(materialize(model, seed=3).state_dict())
    assert held[0].keys() | held[1].keys() == wanted.keys()
    twice = held[0].keys() & held[1].keys()
    is_tied_twice = bindings == TIED and schedule.rank_of(2 * schedule.stages_per_rank - 1, 2) != 0
    assert twice == ({"embeddings.token.weight"} if is_tied_twice else set()) or twice == {"head.weight"}
    for part in held:
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in part.items())


@pytest.mark.parametrize("num_stages", range(1, 6))
def test_sizes_of_stages_are_as_equal_as_the_ends_allow(num_stages):
    for num_blocks, first, last in itertools.product(range(num_stages, 13), range(3), range(4)):
        sizes = sizes_of_stages(num_blocks, num_stages, GPipe(embeddings_as_blocks=first, head_as_blocks=last))
        assert sum(sizes) == num_blocks
        assert min(sizes) >= 1
        best = min(map(spread(first, last), compositions(num_blocks, num_stages)))
        assert spread(first, last)(sizes) == best


def spread(first, last):
    """The largest cost of a stage."""

    def of(sizes):
        costs = list(sizes)
        costs[0] += first
        costs[-1] += last
        return max(costs)

    return of


def compositions(total, length):
    """All ways to write `total` as a sum of `length` positive numbers."""
    if length == 1:
        return [[total]]
    return [[head, *rest] for head in range(1, total - length + 2) for rest in compositions(total - head, length - 1)]


def test_the_remaining_blocks_go_to_the_first_stages():
    assert sizes_of_stages(10, 4, GPipe()) == [3, 3, 2, 2]
    assert sizes_of_stages(10, 4, GPipe(head_as_blocks=2)) == [3, 3, 3, 1]


class OneAfterAnother(BlockSequence):
    def __init__(self, blocks):
        super().__init__()
        for index, block in enumerate(blocks):
            setattr(self, f"block_{index}", block)


class WithSkips(OneAfterAnother):
    def forward(self, x, context):
        return x + super().forward(x, context)


class OtherLoss(LanguageModel):
    def loss(self, *args, **kwargs):
        return super().loss(*args, **kwargs)


def with_skips():
    model = model_of()
    model.decoder = WithSkips(model.decoder.blocks)
    return model


def with_other_loss():
    model = model_of()
    model.__class__ = OtherLoss
    return model


def with_a_part():
    model = model_of()
    model.add_module("probe", torch.nn.Linear(2, 2))
    return model


def without_declared_blocks():
    model = model_of()
    model.decoder = torch.nn.Identity()
    return model


@pytest.mark.parametrize(
    ("build", "schedule", "num_ranks", "message"),
    [
        (model_of, OneForwardOneBackward(), 8, r"4 blocks cannot be divided into 8 stages \(Mesh.pipeline 8 x 1"),
        (model_of, ZeroBubbleV(), 4, r"4 blocks cannot be divided into 8 stages \(Mesh.pipeline 4 x 2 of ZeroBubbleV"),
        (
            lambda: model_of("Repeat.shared = True"),
            GPipe(),
            2,
            r"decoder.block_2.*weight is shared by blocks of the stages 0 and 1 \(Repeat.shared",
        ),
        (
            lambda: model_of("block_2_to_3/DecoderBlock.lr_scale = 0.0", "head/LanguageModelHead.lr_scale = 0.0"),
            GPipe(),
            2,
            r"rank 1 of Mesh.pipeline \(2\) has nothing to train: decoder.block_2, decoder.block_3 are frozen",
        ),
        (with_skips, GPipe(), 2, r"decoder \(WithSkips\) does not only call its blocks one after another"),
        (with_other_loss, GPipe(), 2, r"OtherLoss has its own `loss`"),
        (with_a_part, GPipe(), 2, r"LanguageModel has the part probe, which belongs to no stage"),
        (without_declared_blocks, GPipe(), 2, r"decoder \(Identity\) does not declare its blocks"),
    ],
)
def test_a_model_that_cannot_be_cut_is_refused_by_name(build, schedule, num_ranks, message):
    with pytest.raises(ValueError, match=message):
        cut(build(), schedule, 0, num_ranks)


def test_a_frozen_first_half_is_no_obstacle_where_the_rank_trains_another_stage():
    frozen = ["block_2/DecoderBlock.lr_scale = 0.0", "block_1/DecoderBlock.lr_scale = 0.0"]
    assert misfit_of_stages(model_of(*frozen), ZeroBubbleV(), 2) is not None
    assert misfit_of_stages(model_of(*frozen), InterleavedZeroBubble(), 2) is None


def test_a_whole_pass_on_one_rank_is_refused():
    model = model_of()
    cut(model, GPipe(), 0, 2)
    with pytest.raises(RuntimeError, match=r"decoder.block_2 is on another rank of the pipeline"):
        materialize(model)(torch.zeros(1, 4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("schedule", "num_micro_batches", "message"),
    [
        (GPipe(), 1, None),
        (OneForwardOneBackward(), 3, r"at least as many micro-batches as Mesh.pipeline \(4\), not 3"),
        (OneForwardOneBackward(), 4, None),
        (InterleavedOneForwardOneBackward(), 9, r"multiple of Mesh.pipeline \(4\), not 9"),
        (InterleavedOneForwardOneBackward(), 8, None),
        (InterleavedZeroBubble(), 13, r"multiple of Mesh.pipeline \(4\), not 13"),
        (InterleavedZeroBubble(), 3, None),
        (ZeroBubbleV(), 1, None),
    ],
)
def test_the_number_of_micro_batches_is_checked(schedule, num_micro_batches, message):
    problem = schedule.misfit(num_micro_batches, 4)
    if message is None:
        assert problem is None
    else:
        assert re.search(message, problem)


def test_a_schedule_is_no_part_of_the_fingerprint():
    pipeline = [*TINY, "Mesh.pipeline = 2"]
    fingerprints = {
        quick_config(bindings).fingerprint
        for bindings in (TINY, pipeline, [*pipeline, "Mesh.schedule = @GPipe", "GPipe.head_as_blocks = 1"])
    }
    assert len(fingerprints) == 1
