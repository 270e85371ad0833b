"""Patterns, chains, nested sequences, and weight sharing between blocks."""

from functools import partial

import pytest
import torch

from ml.blocks import Chain, DecoderBlock, Pattern, Repeat
from ml.layers import MLP, Attention, Context, GatedMLP
from ml.models import LanguageModel, materialize, named_parameters_with_scales

H = 16
ATTENTION = partial(Attention, num_heads=4)
WIDE = partial(DecoderBlock, mixer=ATTENTION, mlp=partial(MLP, intermediate_size=20))
NARROW = partial(DecoderBlock, mixer=ATTENTION, mlp=None)


def random_input() -> torch.Tensor:
    return torch.randn(2, 9, H, generator=torch.Generator().manual_seed(0))


def test_a_pattern_repeats_its_kinds_in_order_under_their_names():
    sequence = materialize(Pattern(H, blocks={"a": WIDE, "b": NARROW}, pattern=["a", "a", "b"], num_blocks=5))
    assert sequence.kinds == ["a", "a", "b", "a", "a"]
    places = {name.rpartition(".mixer.query")[0] for name, _ in sequence.named_parameters() if ".query.weight" in name}
    assert places == {"a.block_0", "a.block_1", "b.block_2", "a.block_3", "a.block_4"}
    x = expected = random_input()
    for block in (sequence.a.block_0, sequence.a.block_1, sequence.b.block_2, sequence.a.block_3, sequence.a.block_4):
        expected = block(expected, Context())
    assert torch.equal(sequence(x, Context()), expected)
    assert sequence.num_layers == 5


def test_a_chain_applies_its_sequences_in_order_under_their_names():
    parts = {"first": WIDE, "rest": partial(Repeat, block=NARROW, num_blocks=3)}
    sequence = materialize(Chain(H, sequences=parts))
    x = random_input()
    assert torch.equal(sequence(x, Context()), sequence.rest(sequence.first(x, Context()), Context()))
    assert sequence.num_layers == 4
    assert "rest.block_2.mixer.query.weight" in dict(sequence.named_parameters())


def test_sequences_can_be_nested():
    inner = partial(Pattern, blocks={"a": WIDE, "b": NARROW}, pattern=["a", "b"])
    outer = partial(Repeat, block=inner, num_blocks=2)
    sequence = materialize(Chain(H, sequences={"head": outer, "tail": NARROW}))
    assert sequence.num_layers == 5
    assert "head.block_1.b.block_1.mixer.key.weight" in dict(sequence.named_parameters())
    assert sequence(random_input(), Context()).shape == (2, 9, H)


SHARED = {
    "repeat": (partial(Repeat, block=WIDE, num_blocks=3, shared=True), [0, 0, 0]),
    "pattern, one kind": (
        partial(Pattern, blocks={"a": WIDE, "b": WIDE}, pattern=["a", "b"], num_blocks=5, shared=["b"]),
        [0, 1, 2, 1, 4],
    ),
    "pattern, all kinds": (
        partial(Pattern, blocks={"a": WIDE, "b": NARROW}, pattern=["a", "b"], num_blocks=4, shared=["a", "b"]),
        [0, 1, 0, 1],
    ),
    "a sequence of blocks": (
        partial(Repeat, block=partial(Repeat, block=WIDE, num_blocks=2), num_blocks=2, shared=True),
        [0, 0],
    ),
}


@pytest.mark.parametrize(("sequence", "owners"), SHARED.values(), ids=SHARED)
def test_shared_weights_are_stored_once_and_accumulate_all_gradients(sequence, owners):
    with torch.device("meta"):
        model = LanguageModel(vocab_size=11, hidden_size=H, decoder=sequence)
    blocks = materialize(model).decoder.blocks
    free = materialize(LanguageModel(vocab_size=11, hidden_size=H, decoder=unshared(sequence)))
    for block, owner in zip(free.decoder.blocks, owners, strict=True):
        block.load_state_dict(blocks[owner].state_dict())
    for part in ("embeddings", "head"):
        getattr(free, part).load_state_dict(getattr(model, part).state_dict())

    distinct = {id(p) for index in set(owners) for p in blocks[index].parameters()}
    assert len(distinct) == len({id(p) for p in model.decoder.parameters()})
    assert sum(1 for _ in named_parameters_with_scales(model)) == len(list(model.parameters()))

    tokens = torch.arange(18).view(2, 9) % 11
    for m in (model, free):
        m.loss(tokens, tokens).mean.backward()
    assert torch.equal(model(tokens), free(tokens))
    for owner in set(owners):
        places = [index for index, other in enumerate(owners) if other == owner]
        for name, parameter in blocks[owner].named_parameters():
            apart = [dict(free.decoder.blocks[index].named_parameters())[name].grad for index in places]
            torch.testing.assert_close(parameter.grad, sum(apart), rtol=1e-4, atol=1e-7)


def unshared(sequence: partial) -> partial:
    options = {name: value for name, value in sequence.keywords.items() if name != "shared"}
    return partial(sequence.func, **options)


def test_shared_blocks_may_differ_in_settings_other_than_weights():
    sizes = iter([3, None])

    def block(hidden_size):
        return DecoderBlock(hidden_size, mixer=partial(ATTENTION, window_size=next(sizes)))

    sequence = Repeat(H, block=block, num_blocks=2, shared=True)
    assert [b.mixer.window_size for b in sequence.blocks] == [3, None]


DIFFERENT = {
    "shapes": lambda i: partial(WIDE, mlp=partial(MLP, intermediate_size=20 + i)),
    "layers": lambda i: partial(WIDE, mlp=[MLP, GatedMLP][i]),
    "scales": lambda i: partial(WIDE, lr_scale=1.0 - 0.5 * i),
}


@pytest.mark.parametrize("different", DIFFERENT.values(), ids=DIFFERENT)
def test_different_blocks_cannot_share_weights(different):
    indices = iter(range(2))

    def block(hidden_size):
        return different(next(indices))(hidden_size)

    with pytest.raises(ValueError, match="shared needs"):
        Repeat(H, block=block, num_blocks=2, shared=True)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(Pattern, blocks={"a": WIDE}, pattern=["a", "c"]), "pattern must name blocks .a., not c"),
        (partial(Pattern, blocks={"a": WIDE}, pattern=[]), "pattern must name one block or more"),
        (partial(Pattern, blocks={"a": WIDE, "b": WIDE}, pattern=["a"]), "blocks has b, which the pattern does not"),
        (
            partial(Pattern, blocks={"a": WIDE, "b": WIDE}, pattern=["a", "b"], num_blocks=1),
            "blocks has b, which the pattern does not reach in 1 blocks",
        ),
        (partial(Pattern, blocks={"a": WIDE}, pattern=["a"], shared=["z"]), "shared must name blocks .a., not z"),
        (partial(Pattern, blocks={"a b": WIDE}, pattern=["a b"]), "blocks cannot have the name 'a b'"),
        (partial(Pattern, blocks={"forward": WIDE}, pattern=["forward"]), "blocks cannot have the name 'forward'"),
        (partial(Pattern, blocks={"blocks": WIDE}, pattern=["blocks"]), "blocks cannot have the name 'blocks'"),
        (partial(Chain, sequences={"num_layers": WIDE}), "sequences cannot have the name 'num_layers'"),
        (partial(Pattern, blocks={"a": WIDE}, pattern=["a"], num_blocks=0), "num_blocks must be positive"),
        (partial(Chain, sequences={}), "sequences must name one sequence or more"),
        (partial(Chain, sequences={"train": WIDE}), "sequences cannot have the name 'train'"),
    ],
)
def test_invalid_options_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build(H)
