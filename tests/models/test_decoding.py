"""The whole model with a cache, and with separated documents."""

import copy
import pickle
from functools import partial

import pytest
import torch

from ml.blocks import DecoderBlock, Pattern, Repeat
from ml.layers import (
    Attention,
    Cache,
    Context,
    Embeddings,
    PositionEmbedding,
    ShortConvolutionMixer,
    TwoDimensionalRotary,
)
from ml.models import LanguageModel, materialize

V, H, T = 19, 16, 12
ATTENTION = partial(Attention, num_heads=4)
MODELS = {
    "rotary": {},
    "learned positions": {
        "embeddings": partial(Embeddings, position=PositionEmbedding),
        "decoder": partial(Repeat, num_blocks=2, block=partial(DecoderBlock, mixer=partial(ATTENTION, rotary=None))),
    },
    "hybrid": {
        "decoder": partial(
            Pattern,
            blocks={
                "short": partial(DecoderBlock, mixer=ShortConvolutionMixer),
                "full": partial(DecoderBlock, mixer=ATTENTION),
            },
            pattern=["short", "full"],
            num_blocks=3,
        )
    },
    "shared": {"decoder": partial(Repeat, num_blocks=3, shared=True, block=partial(DecoderBlock, mixer=ATTENTION))},
}


def build(decoder=None, **options) -> LanguageModel:
    decoder = decoder or partial(Repeat, num_blocks=2, block=partial(DecoderBlock, mixer=ATTENTION))
    return materialize(LanguageModel(vocab_size=V, hidden_size=H, decoder=decoder, **options)).eval()


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_tokens_one_by_one_have_the_logits_of_one_pass(options):
    model, text = build(**options), tokens(2, T)
    cache = Cache()
    pieces = [model(piece, cache=cache) for piece in text.split([5, 1, 1, 1, 4], dim=1)]
    assert cache.num_tokens == T
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(text), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_left_padding_is_a_separate_document_and_changes_nothing(options):
    model, prompts = build(**options), [tokens(1, 3), tokens(1, 7)]
    rows = torch.cat([torch.nn.functional.pad(prompt, (7 - prompt.shape[1], 0)) for prompt in prompts])
    documents = torch.cat([torch.arange(7)[None] >= 7 - prompt.shape[1] for prompt in prompts]).long()
    cache = Cache()
    first = model(rows, documents=documents, cache=cache)[:, -1]
    following = torch.tensor([[4], [5]])
    second = model(following, documents=torch.ones(2, 1, dtype=torch.long), cache=cache)[:, -1]
    for row, prompt in enumerate(prompts):
        expected = model(torch.cat((prompt, following[row : row + 1]), dim=1))[0]
        torch.testing.assert_close(torch.stack((first[row], second[row])), expected[-2:], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_packed_documents_have_the_loss_and_gradients_of_separate_ones(options):
    model, text = build(**options), tokens(1, T)
    targets = tokens(1, T).flip(1)
    lengths = [4, 1, 7]
    documents = torch.repeat_interleave(torch.tensor([5, 2, 9]), torch.tensor(lengths))[None]
    packed = torch.autograd.grad(model.loss(text, targets, documents=documents).total, list(model.parameters()))
    alone = [model.loss(t, y).total for t, y in zip(text.split(lengths, 1), targets.split(lengths, 1), strict=True)]
    expected = torch.autograd.grad(sum(alone), list(model.parameters()), materialize_grads=True)
    for value, other in zip(packed, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_cache_goes_with_copies_of_its_model_and_not_with_other_models():
    model, text, cache = build(), tokens(2, T), Cache()
    expected = model(text)
    model(text[:, :5], cache=cache)
    other = pickle.loads(pickle.dumps(model))
    following = other(text[:, 5:], cache=copy.deepcopy(cache))
    torch.testing.assert_close(following, expected[:, 5:], rtol=1e-4, atol=1e-6)
    deeper = build(partial(Repeat, num_blocks=3, block=partial(DecoderBlock, mixer=ATTENTION)))
    with pytest.raises(
        ValueError, match=r"decoder\.block_2\.mixer \(Attention\) finds no state in a cache of 5 tokens"
    ):
        deeper(text[:, 5:], cache=cache)
    with pytest.raises(ValueError, match="the previous pass with this cache failed"):
        model(text[:, 5:], cache=cache)


@torch.no_grad()
def test_a_cache_of_other_sequences_is_refused():
    model, cache = build(), Cache()
    model(tokens(2, 3), cache=cache)
    with pytest.raises(ValueError, match="the cache has 2 sequences, and the new tokens have 1"):
        model(tokens(1, 1), cache=cache)


@torch.no_grad()
def test_learned_positions_end_with_a_clear_error_in_every_use():
    model = build(embeddings=partial(Embeddings, position=partial(PositionEmbedding, num_positions=6)))
    cache = Cache()
    model(tokens(1, 5), cache=cache)
    with pytest.raises(ValueError, match="2 tokens after 5 in the cache are beyond the 6 learned positions"):
        model(tokens(1, 2), cache=cache)
    with pytest.raises(ValueError, match=r"num_positions \(6\) has no position 6"):
        model(tokens(1, 2), positions=torch.tensor([5, 6]))
    with pytest.raises(ValueError, match=r"num_positions \(6\) has no position 6"):
        model(tokens(1, 8), documents=torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1]]))
    model(tokens(1, 8), documents=torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]]))


def test_bidirectional_attention_cannot_decode():
    mixer = materialize(Attention(H, num_heads=4, causal=False))
    with pytest.raises(ValueError, match="not causal cannot decode"):
        mixer(torch.randn(1, 3, H), Context(cache=Cache()))


IMAGE_PARTS = {
    "lets a token see those that it is to predict": partial(ATTENTION, causal=False),
    "turns by rows and columns": partial(ATTENTION, rotary=TwoDimensionalRotary),
}


@pytest.mark.parametrize(("message", "mixer"), IMAGE_PARTS.items(), ids=IMAGE_PARTS)
def test_layers_for_images_are_refused_for_text(message, mixer):
    with pytest.raises(ValueError, match=f"decoder {message}"):
        build(partial(Repeat, num_blocks=1, block=partial(DecoderBlock, mixer=mixer)))
