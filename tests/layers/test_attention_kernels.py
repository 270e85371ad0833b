"""Every attention kernel against the reference, forward and all gradients, and what each declares."""

from itertools import pairwise

import pytest
import torch
from torch.nn.attention import flex_attention as library
from torch.nn.attention.flex_attention import create_block_mask

from ml.layers import (
    AutomaticAttention,
    BlockwiseAttention,
    Context,
    DotProductAttention,
    FlexAttention,
    ReferenceAttention,
    VariableLengthAttention,
    attention_reference,
)
from ml.layers.attention_kernels import Weighting, flex, task_of, variable_length
from ml.layers.attention_kernels.block_mask import block_mask
from ml.layers.attention_kernels.visibility import document_ends, visible_keys

HEAD = 16
WAYS_TO_SEE = [(True, None), (True, 1), (True, 7), (True, 130), (False, None), (False, 20), (False, 500)]
SHAPES = [(1, 1), (100, 100), (128, 128), (300, 300), (1, 150), (140, 300)]
EXTRAS = {
    "plain": {},
    "cap": {"soft_cap": 0.7},
    "sinks": {"sinks": True},
    "documents": {"documents": True},
    "all": {"soft_cap": 0.7, "sinks": True, "documents": True},
}
KERNELS = [
    DotProductAttention(),
    BlockwiseAttention(),
    FlexAttention(),
    VariableLengthAttention(),
    AutomaticAttention(),
    ReferenceAttention(),
]


def random_input(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def case(extras, causal, window_size, num_queries, num_keys, value_size=HEAD):
    """Returns query, key, value and the weighting, with two rows whose documents differ."""
    heads = [random_input(2, 4, num_queries, HEAD), random_input(2, 2, num_keys, HEAD, seed=1)]
    heads.append(random_input(2, 2, num_keys, value_size, seed=2))
    documents = None
    if "documents" in extras:
        documents = torch.stack([torch.arange(num_keys) // 37, torch.arange(num_keys) // 101])
    sinks = random_input(4, seed=7) if "sinks" in extras else None
    return heads, Weighting(causal, window_size, 0.4, extras.get("soft_cap"), sinks, documents)


def results(kernel, heads, weighting):
    """Output and gradients of query, key, value and sinks."""
    inputs = [x.detach().clone().requires_grad_() for x in heads]
    if weighting.sinks is not None:
        sinks = weighting.sinks.detach().clone().requires_grad_()
        inputs, weighting = [*inputs, sinks], weighting._replace(sinks=sinks)
    output = kernel.attend(*inputs[:3], weighting, Context(documents=weighting.documents))
    gradient = random_input(*output.shape, seed=9).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, inputs, gradient)]


@pytest.fixture
def on_cpu(monkeypatch):
    """Computes the kernels of a GPU on the CPU: FlexAttention by torch's plain form, packed sequences by a loop."""
    monkeypatch.setattr(library, "_validate_device", lambda *_: None)
    monkeypatch.setattr(library, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(flex, "_function", lambda *_: library.flex_attention)
    monkeypatch.setattr(variable_length, "_function", lambda: attention_of_sequences)


def attention_of_sequences(
    query, key, value, starts, key_starts, longest, longest_key, *, scale, window_size, enable_gqa
):
    """`torch.nn.attention.varlen.varlen_attn` by its documentation, one sequence after another."""
    assert torch.equal(starts, key_starts)
    assert enable_gqa == (query.shape[1] != key.shape[1])
    parts = []
    before, after = window_size
    for start, end in pairwise(starts.tolist()):
        assert end - start <= longest == longest_key
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        k, v = (x.repeat_interleave(q.shape[0] // k.shape[0], dim=0) for x in (k, v))
        distance = torch.arange(end - start)[:, None] - torch.arange(end - start)
        seen = (distance <= before) | (before == -1)
        seen &= (-distance <= after) | (after == -1)
        weights = (q @ k.mT * scale).masked_fill(~seen, -torch.inf).softmax(-1)
        parts.append((weights @ v).transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("extras", EXTRAS.values(), ids=EXTRAS)
@pytest.mark.parametrize(("num_queries", "num_keys"), SHAPES)
def test_every_kernel_equals_the_reference_and_its_gradients(on_cpu, extras, num_queries, num_keys):
    taken = set()
    for causal, window_size in WAYS_TO_SEE:
        heads, weighting = case(extras, causal, window_size, num_queries, num_keys)
        expected = results(ReferenceAttention(), heads, weighting)
        task = task_of(*heads, weighting)._replace(device=None, dtype=None)
        for kernel in KERNELS[:-1]:
            if kernel.obstacle(task) is None:
                taken.add(type(kernel))
                for value, reference in zip(results(kernel, heads, weighting), expected, strict=True):
                    # FlexAttention's plain form computes the logarithm of the sum in float32.
                    torch.testing.assert_close(value, reference, rtol=1e-5 if "sinks" in extras else 1e-7, atol=1e-6)
    has_more = "soft_cap" in extras or "sinks" in extras
    expected_kernels = {BlockwiseAttention, FlexAttention, AutomaticAttention}
    expected_kernels |= set() if has_more else {DotProductAttention}
    expected_kernels |= set() if has_more or num_queries != num_keys else {VariableLengthAttention}
    assert taken == expected_kernels


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("documents", [False, True])
def test_values_of_another_size_than_keys(on_cpu, causal, documents):
    heads, weighting = case({"documents": True} if documents else {}, causal, 30, 300, 300, value_size=24)
    expected = results(ReferenceAttention(), heads, weighting)
    for kernel in (DotProductAttention(), BlockwiseAttention(), FlexAttention(), AutomaticAttention()):
        for value, reference in zip(results(kernel, heads, weighting), expected, strict=True):
            torch.testing.assert_close(value, reference, rtol=1e-7, atol=1e-9)


def test_bfloat16_errors_are_within_its_rounding():
    heads = [random_input(2, heads, 200, 16, seed=heads).bfloat16() for heads in (4, 2, 2)]
    expected = results(ReferenceAttention(), [x.double() for x in heads], Weighting())
    for kernel in (BlockwiseAttention(), DotProductAttention()):
        for value, reference in zip(results(kernel, heads, Weighting()), expected, strict=True):
            error = (value.double() - reference).square().mean().sqrt() / reference.square().mean().sqrt()
            assert error < 2 * 2**-8  # bfloat16 rounds to 2^-9; scores, weights and outputs are each rounded once


def test_dropout_of_blocks_drops_weights_and_the_same_ones_in_the_backward_pass():
    inputs = [random_input(1, heads, 9, 2, seed=seed) for seed, heads in enumerate((2, 1, 1))]
    sinks = random_input(2, seed=5)
    documents = (torch.arange(9) // 4)[None]
    weighting = Weighting(soft_cap=1.0, window_size=3, sinks=sinks, documents=documents, dropout=0.3)

    def dropped(*inputs):
        return BlockwiseAttention()(*inputs[:3], weighting._replace(sinks=inputs[3]), Context(documents=documents))

    def seeded(*inputs):
        torch.manual_seed(3)
        return dropped(*inputs)

    torch.manual_seed(0)
    draws = torch.stack([dropped(*inputs, sinks) for _ in range(200)])
    expected = attention_reference(*inputs, **weighting._replace(dropout=0.0)._asdict())
    assert not torch.allclose(draws[0], draws[1])
    # The mean of 200 draws: the standard deviation of one is below 1, of the mean below 0.07.
    torch.testing.assert_close(draws.mean(0), expected, rtol=0, atol=0.3)
    assert torch.autograd.gradcheck(seeded, [x.requires_grad_() for x in (*inputs, sinks)], fast_mode=True)


@pytest.mark.parametrize(("num_queries", "num_keys"), [(300, 300), (256, 256), (140, 300), (1, 257)])
@pytest.mark.parametrize("documents", [None, 37, 128])
def test_block_masks_are_those_of_the_library_and_know_what_is_whole(documents, num_queries, num_keys):
    places = torch.arange(num_keys)
    rows = 1 if documents is None else 2
    numbers = None if documents is None else torch.stack([places // documents, places // (documents + 11)])
    for causal, window_size in [*WAYS_TO_SEE, (True, 128), (True, 200)]:
        args = (num_queries, num_keys, causal, window_size, numbers, torch.device("cpu"))
        made, dense = block_mask(*args), visible_keys(*args).expand(rows, 1, num_queries, num_keys)
        expected = create_block_mask(made.mask_mod, rows, None, num_queries, num_keys, device="cpu")
        assert torch.equal(made.to_dense(), expected.to_dense())
        assert torch.equal(library.create_mask(made.mask_mod, rows, 1, num_queries, num_keys, device="cpu"), dense)
        whole = library.BlockMask.from_kv_blocks(made.full_kv_num_blocks, made.full_kv_indices)
        expected_whole = library.BlockMask.from_kv_blocks(expected.full_kv_num_blocks, expected.full_kv_indices)
        assert torch.equal(whole.to_dense(), expected_whole.to_dense())


def test_the_ends_of_documents_are_those_of_a_search():
    documents = torch.tensor([[3, 3, 3, 1, 7, 7], [0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 5]])
    first, end = document_ends(documents)
    for row, numbers in enumerate(documents.tolist()):
        assert first[row].tolist() == [numbers.index(number) for number in numbers]
        assert end[row].tolist() == [6 - numbers[::-1].index(number) for number in numbers]
