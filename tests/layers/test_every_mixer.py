"""Properties of every mixer: causality, cached decoding, separated documents."""

import copy
import pickle
from functools import partial

import pytest
import torch
from mixer_cases import MIXERS, classes_of_mixers

from ml.blocks import ActivationCheckpointing, DecoderBlock, SelectiveActivationCheckpointing
from ml.layers import Cache, Context
from ml.layers.context import places_in_documents
from ml.models import materialize

B, T, H = 2, 23, 16
LENGTHS = (7, 1, 11, 4)  # of the documents of a row
# In float64; angles and some states are float32, with errors near 1e-7 of values of order one.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}

every_mixer = pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)


def build(mixer) -> torch.nn.Module:
    layer = materialize(mixer(H)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=0.3)
    return layer.eval()


def random_input(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def context_of(cache: Cache, length: int, documents: torch.Tensor | None = None) -> Context:
    if documents is None:
        return Context(torch.arange(length) + cache.num_tokens, cache=cache)
    positions = places_in_documents(cache.with_cached(documents))[:, -length:]
    return Context(positions, documents, cache)


def documents_of_rows() -> torch.Tensor:
    return torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS)).expand(B, T)


@every_mixer
@pytest.mark.parametrize("pieces", [[1] * T, [5, 1, 1, 9, 7], [T - 1, 1]], ids=["one by one", "uneven", "last"])
@torch.no_grad()
def test_decoding_in_pieces_equals_one_pass(mixer, pieces):
    layer, x = build(mixer), random_input(B, T, H)
    cache, outputs = Cache(), []
    for piece in x.split(pieces, dim=1):
        outputs.append(layer(piece, context_of(cache, piece.shape[1])))
        cache.advance(piece.shape[1], None)
    torch.testing.assert_close(torch.cat(outputs, dim=1), layer(x, Context()), **CLOSE)


COPIES = {"copied": copy.copy, "deeply": copy.deepcopy, "pickled": lambda cache: pickle.loads(pickle.dumps(cache))}


@every_mixer
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_of_a_cache_continues_alone_and_with_a_copy_of_the_layer(mixer, copied):
    layer, x = build(mixer), random_input(B, T, H)
    cache, expected = Cache(), layer(x, Context())
    layer(x[:, :9], context_of(cache, 9))  # with gradients, so that states have them too
    cache.advance(9, None)
    other = copied(cache)
    layer(torch.zeros_like(x[:, :3]), context_of(cache, 3))  # changes nothing in the copy
    with torch.no_grad():
        for model in (layer, copy.deepcopy(layer)):
            taken = copy.deepcopy(other)
            torch.testing.assert_close(model(x[:, 9:], context_of(taken, T - 9)), expected[:, 9:], **CLOSE)


@every_mixer
@torch.no_grad()
def test_a_cache_with_tokens_and_without_the_state_of_a_mixer_is_refused(mixer):
    cache = Cache()
    cache.advance(4, None)
    with pytest.raises(ValueError, match=r"finds no state in a cache of 4 tokens"):
        build(mixer)(random_input(B, 1, H), context_of(cache, 1))


@every_mixer
@torch.no_grad()
def test_decoding_separates_documents(mixer):
    layer, x, documents = build(mixer), random_input(B, T, H), documents_of_rows()
    expected = layer(x, Context(places_in_documents(documents), documents))
    cache, outputs = Cache(), []
    for piece, numbers in zip(x.split(3, dim=1), documents.split(3, dim=1), strict=True):
        outputs.append(layer(piece, context_of(cache, piece.shape[1], numbers)))
        cache.advance(piece.shape[1], numbers)
    torch.testing.assert_close(torch.cat(outputs, dim=1), expected, **CLOSE)


@every_mixer
def test_packed_documents_equal_separate_ones_in_outputs_and_gradients(mixer):
    layer, gradient = build(mixer), random_input(B, T, H, seed=5)
    x = random_input(B, T, H).requires_grad_()
    documents = documents_of_rows()

    def results(output):
        layer.zero_grad()
        (input_gradient,) = torch.autograd.grad(output, x, gradient, retain_graph=True)
        output.backward(gradient)
        gradients = {name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None}
        return output.detach(), input_gradient, gradients

    packed = results(layer(x, Context(places_in_documents(documents), documents)))
    alone = results(torch.cat([layer(part, Context()) for part in x.split(LENGTHS, dim=1)], dim=1))
    assert packed[2]
    torch.testing.assert_close(packed, alone, **CLOSE)


@every_mixer
def test_a_later_token_changes_no_earlier_output(mixer):
    layer, x = build(mixer), random_input(B, T, H)
    changed = x.clone()
    changed[:, 13] += 1.0
    before, after = layer(x, Context()), layer(changed, Context())
    assert torch.equal(before[:, :13], after[:, :13]) or torch.allclose(before[:, :13], after[:, :13], atol=1e-12)
    assert not torch.allclose(before[:, 13:], after[:, 13:])


@every_mixer
@pytest.mark.parametrize("policy", [ActivationCheckpointing, SelectiveActivationCheckpointing])
def test_checkpointed_activations_give_the_same_bits(mixer, policy):
    results = []
    for checkpointing in (None, policy):
        block = build(partial(DecoderBlock, mixer=mixer, activation_checkpointing=checkpointing)).float().train()
        x = random_input(B, T, H).float().requires_grad_()
        output = block(x, Context())
        output.square().sum().backward()
        results.append([output.detach(), x.grad, *(p.grad for p in block.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1])
    assert all(torch.equal(value, expected) for value, expected in zip(*results, strict=True))


def test_every_mixer_has_a_case():
    layers = {type(module) for case in MIXERS.values() for module in case(H).modules()}
    assert classes_of_mixers() <= layers
