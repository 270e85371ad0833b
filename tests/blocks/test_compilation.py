"""Graphs of compiled blocks: one for each kind of block, without breaks, whatever the number of kinds."""

from functools import partial
from unittest import mock

import pytest
import torch
from layers.mixer_cases import ATTENTION, MIXERS
from torch import nn
from torch._dynamo.testing import CompileCounter

from ml.blocks import ActivationCheckpointing, DecoderBlock, Pattern, SelectiveActivationCheckpointing
from ml.distributed import Layout, Mesh, parallelize
from ml.distributed.compiled_block import CompiledBlock
from ml.distributed.compiled_code import forwards_by_kind
from ml.layers import MLP, Context, DoRA, Float8, Linear, LongRotary, MixtureOfExperts, SigmoidRouter, StochasticMixer
from ml.layers.context import places_in_documents
from ml.models import LanguageModel, materialize

B, T, H = 2, 12, 16
NUM_KINDS = 12  # more than torch.compile has variants of a function
GROUPED = partial(MixtureOfExperts, num_experts=4, grouped=True, expert=partial(MLP, intermediate_size=16))
BLOCKS = {
    **{name: partial(DecoderBlock, mixer=mixer) for name, mixer in MIXERS.items()},
    "rotation by length": partial(
        DecoderBlock,
        mixer=partial(ATTENTION, rotary=partial(LongRotary, long_factors=[2.0, 3.0], short_factors=[1.0])),
        mlp=None,
    ),
    "adapters": partial(
        DecoderBlock, mixer=ATTENTION, mlp=partial(MLP, linear=partial(Linear, apply_peft=partial(DoRA, dropout=0.1)))
    ),
    "float8": partial(DecoderBlock, mixer=ATTENTION, mlp=partial(MLP, linear=partial(Linear, kernel=Float8))),
    "plain MLP": partial(DecoderBlock, mixer=ATTENTION, mlp=MLP),
    "no MLP": partial(DecoderBlock, mixer=ATTENTION, mlp=None),
    "dropout": partial(DecoderBlock, mixer=ATTENTION, dropout=0.1, norm_position="post"),
    "experts": partial(DecoderBlock, mixer=ATTENTION, mlp=GROUPED),
    "experts with a bias": partial(DecoderBlock, mixer=ATTENTION, mlp=partial(GROUPED, router=SigmoidRouter)),
    "recomputed": partial(DecoderBlock, mixer=ATTENTION, activation_checkpointing=ActivationCheckpointing),
    "partly recomputed": partial(
        DecoderBlock, mixer=ATTENTION, activation_checkpointing=SelectiveActivationCheckpointing
    ),
}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def draw(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, StochasticMixer):
            part.draw(torch.Generator().manual_seed(0))


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_a_block_is_one_graph(block):
    built = materialize(block(H))
    draw(built)
    counter = CompileCounter()
    with mock.patch.object(torch, "compile", partial(torch.compile, backend=counter, fullgraph=True)):
        compiled = CompiledBlock(built, built.forward)
    documents = torch.zeros(B, T, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):  # in which experts are grouped
        context = Context(places_in_documents(documents), documents, num_tokens=T)
        compiled(torch.ones(B, T, H, requires_grad=True), context).sum().backward()
    assert counter.frame_count == 1


def windows() -> LanguageModel:
    """A model with two blocks of each of `NUM_KINDS` window sizes."""
    sizes = range(2, 2 + NUM_KINDS)
    blocks = {
        f"of_{size}": partial(DecoderBlock, mixer=partial(ATTENTION, window_size=size), mlp=None) for size in sizes
    }
    decoder = partial(Pattern, blocks=blocks, pattern=list(blocks), num_blocks=2 * NUM_KINDS)
    return LanguageModel(vocab_size=32, hidden_size=H, decoder=decoder)


def test_every_kind_of_block_is_one_graph_for_training_and_one_for_validation():
    model, counter = windows(), CompileCounter()
    with mock.patch.object(torch, "compile", partial(torch.compile, backend=counter, fullgraph=True)):
        parallelize(model, Layout(), Mesh(), compile=True)
    materialize(model)
    tokens = torch.zeros(B, T, dtype=torch.int64)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for _ in range(2):
            model.loss(tokens=tokens, targets=tokens).total.backward()
        assert counter.frame_count == NUM_KINDS + 1  # the head
        with torch.no_grad():
            model.eval().loss(tokens=tokens, targets=tokens)
    assert counter.frame_count == 2 * (NUM_KINDS + 1)


def test_equal_blocks_share_their_code_and_others_do_not():
    model = windows()
    blocks = model.decoder.blocks
    forwards = forwards_by_kind(blocks)
    codes = [forward.__code__ for forward in forwards]
    assert len({id(code) for code in codes}) == NUM_KINDS
    assert all(codes[index] is codes[index + NUM_KINDS] for index in range(NUM_KINDS))
    assert [forward.__self__ for forward in forwards] == blocks


class Wrapped(nn.Module):
    """A block whose `forward` is no method."""

    def __init__(self):
        super().__init__()
        self.forward = partial(torch.add, 1.0)


def test_a_forward_that_is_no_method_is_kept():
    block = Wrapped()
    assert forwards_by_kind([block]) == [block.forward]
