"""Sequences divided over the context axis: loss and gradients are those of one process."""

from functools import partial

import pytest
import torch
from processes import run_ranks
from stretch_cases import CASES, differences, inputs_of, model_of
from torch.distributed.device_mesh import init_device_mesh

from ml.blocks import DecoderBlock, Repeat
from ml.distributed.neighbors import Neighbors
from ml.distributed.stretch import context_parallel, obstacle_to_length, obstacle_to_stretches
from ml.layers import Attention, Mixer, PatchEmbedding, Rotary, TwoDimensionalRotary
from ml.models import LanguageModel, VisionEncoder, VisionLanguageModel

ON_FOUR = (
    "attention, documents",
    "window over several stretches",
    "Mamba-2, a block applied twice, recomputed",
    "hybrid, documents",
)


@pytest.fixture(scope="module")
def on_two():
    return run_ranks(2, differences, list(CASES))


@pytest.mark.parametrize("name", CASES)
def test_stretches_on_two_ranks_equal_one_process(on_two, name):
    assert on_two[0][name] == []


def test_stretches_on_four_ranks_equal_one_process():
    for found in run_ranks(4, differences, list(ON_FOUR)):
        assert found == {name: [] for name in ON_FOUR}


def compiled_loss(world):
    """Loss and gradients with compiled blocks, and without: (loss, gradients) each."""
    results = []
    for is_compiled in (True, False):
        model = model_of(CASES["Mamba-2"])
        for block in model.decoder.blocks:
            if is_compiled:
                block.compile(backend="aot_eager")
        context_parallel(model, axis_of(world))
        total = model.loss(**inputs_of(CASES["Mamba-2"], 1)).total
        total.backward()
        results.append((total.detach(), {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(*results)


@pytest.mark.slow
def test_compiled_blocks_exchange_outside_of_their_graphs():
    run_ranks(2, compiled_loss)


def axis_of(world):
    return init_device_mesh("cpu", (world.size,), mesh_dim_names=("context",))["context"]


def exchanged(world):
    """Gradients of each exchange, where rank r multiplies what it gets by r + 1."""
    neighbors = Neighbors(axis_of(world))
    rank, x = world.rank, torch.arange(4.0).reshape(1, 4).add(10 * world.rank).requires_grad_()
    with_previous, later = neighbors.with_previous(x, 1, 3), neighbors.later(x, 1, -1.0)
    ((with_previous.sum() + later.sum()) * (rank + 1)).backward()
    sent = torch.zeros(())
    state = x.detach().clone().requires_grad_()
    if not neighbors.is_first:
        state = neighbors.receive("state") + x.detach()
    if not neighbors.is_last:
        sent = neighbors.send("state", state)
    neighbors.settle()
    grown = state.detach().tolist()[0]
    if neighbors.is_last:
        state.sum().backward()
    else:
        sent.backward()
    neighbors.settle()  # before the process ends
    return with_previous.tolist()[0], later.tolist()[0], x.grad.tolist()[0], grown, state.grad if rank == 0 else None


def test_exchanges_with_neighbors():
    first, middle, last = run_ranks(3, exchanged)
    assert [first[0], middle[0]] == [[0, 1, 2, 3], [1, 2, 3, 10, 11, 12, 13]]
    assert [middle[1], last[1]] == [[11, 12, 13, 20], [21, 22, 23, -1]]
    # Of rank 1: twice its own factor of 2, the factor of 3 of the last three entries, that of 1 of the first for later.
    assert first[2] == [1, 1 + 1 + 2, 1 + 1 + 2, 1 + 1 + 2]
    assert middle[2] == [2 + 1, 2 + 2 + 3, 2 + 2 + 3, 2 + 2 + 3]
    assert [first[3][0], middle[3][0], last[3][0]] == [0, 10, 30]
    assert first[4].tolist() == [[1, 1, 1, 1]]


class ForgetfulMixer(Mixer):
    """A mixer without a rule."""

    causal = True
    separates_documents = True

    def forward(self, x, context):
        return x.cumsum(1)


class OwnLengthRotary(Rotary):
    """A rotation by the length of the pass, which it looks up itself."""

    depends_on_length = True


def small(mixer):
    block = partial(DecoderBlock, mixer=mixer, mlp=None)
    decoder = partial(Repeat, block=block, num_blocks=2)
    return partial(LanguageModel, vocab_size=16, hidden_size=8, decoder=decoder)


def test_what_cannot_be_divided_is_refused_by_name():
    attention = partial(Attention, num_heads=2)
    assert obstacle_to_stretches(small(attention)()) is None
    problem = obstacle_to_stretches(small(lambda hidden_size: ForgetfulMixer())())
    assert problem is not None
    assert problem.startswith("decoder.block_0.mixer (ForgetfulMixer) has no rule for a stretch of a sequence")
    problem = obstacle_to_stretches(small(partial(attention, rotary=OwnLengthRotary))())
    assert problem is not None
    assert problem.startswith("decoder.block_0.mixer.rotary (OwnLengthRotary) rotates by the length")
    seeing = partial(attention, causal=False, rotary=TwoDimensionalRotary)
    encoder = partial(Repeat, block=partial(DecoderBlock, mixer=seeing, mlp=None), num_blocks=1)
    patches = partial(PatchEmbedding, image_size=(4, 4), patch_size=2)
    vision = partial(VisionEncoder, hidden_size=8, patches=patches, encoder=encoder)
    problem = obstacle_to_stretches(VisionLanguageModel(language_model=small(attention), vision=vision))
    assert problem is not None
    assert problem.startswith("VisionLanguageModel reads images")


def test_a_length_that_the_axis_does_not_divide_is_refused():
    assert obstacle_to_length(16, 4) is None
    assert obstacle_to_length(18, 4) == "Trainer.sequence_length (18) is not divisible by Mesh.context (4)"
