"""The gated delta rule: the reference against matrix products, and the chunked form against the reference."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ml.layers.recurrences.delta_rule import gated_delta_rule
from ml.layers.recurrences.delta_rule_reference import gated_delta_rule_reference

B, N, D, V = 2, 3, 8, 5
DECAYS = {"by head": (B, N), "by channel": (B, N, D)}
# The forms round in float64 with different summation orders: errors of 1e-15 of values and gradients of a few units.
EXACT = {"rtol": 1e-11, "atol": 1e-12}


def inputs(length: int, decay: str, seed: int = 0, strength: float = 1.0) -> dict[str, Tensor]:
    """Returns random arguments of the rule in float64, with keys of unit length and an initial state."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    batch, *heads = DECAYS[decay]
    return {
        "query": random(B, length, N, D),
        "key": F.normalize(random(B, length, N, D), dim=-1),
        "value": random(B, length, N, V),
        "log_decay": -strength * F.softplus(random(batch, length, *heads)),
        "beta": random(B, length, N).sigmoid(),
        "initial_state": random(B, N, D, V),
    }


def results_and_gradients(function, arguments: dict[str, Tensor], **options) -> dict[str, Tensor]:
    """Returns the results of `function` and the gradients of its arguments for fixed random output gradients."""
    arguments = {name: tensor.detach().clone().requires_grad_() for name, tensor in arguments.items()}
    output, state = function(**arguments, **options)
    generator = torch.Generator().manual_seed(99)
    gradients = [torch.randn(x.shape, dtype=torch.float64, generator=generator).to(x.dtype) for x in (output, state)]
    torch.autograd.backward((output, state), gradients)
    return {"output": output.detach(), "state": state.detach(), **{name: x.grad for name, x in arguments.items()}}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        torch.testing.assert_close(
            value.double(), expected[name].double(), **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def starts_at(length: int, *places: tuple[int, int]) -> Tensor:
    starts = torch.zeros(B, length, dtype=torch.bool)
    for row, place in places:
        starts[row, place] = True
    return starts


@pytest.mark.parametrize("decay", DECAYS)
def test_reference_equals_the_products_of_matrices_of_the_papers(decay):
    """S_t = (1 - β_t k_t k_tᵀ) Diag(e^{g_t}) S_{t-1} + β_t k_t v_tᵀ, with explicit matrices."""
    arguments = inputs(6, decay)
    output, state = gated_delta_rule_reference(**arguments)
    for row in range(B):
        for head in range(N):
            q, k, v, g, beta = (
                arguments[name][row, :, head] for name in ("query", "key", "value", "log_decay", "beta")
            )
            expected = arguments["initial_state"][row, head]
            for t in range(6):
                transition = (torch.eye(D) - beta[t] * torch.outer(k[t], k[t])) @ torch.diag(g[t].exp().expand(D))
                expected = transition @ expected + beta[t] * torch.outer(k[t], v[t])
                torch.testing.assert_close(output[row, t, head], expected.T @ q[t], **EXACT)
            torch.testing.assert_close(state[row, head], expected, **EXACT)


def test_reference_starts_a_document_with_an_empty_state():
    arguments = inputs(7, "by head")
    starts = starts_at(7, (0, 3), (1, 3))
    output, state = gated_delta_rule_reference(**arguments, document_starts=starts)
    later = {name: tensor[:, 3:] for name, tensor in arguments.items() if name != "initial_state"}
    alone, alone_state = gated_delta_rule_reference(**later)
    torch.testing.assert_close(output[:, 3:], alone, rtol=0.0, atol=0.0)
    torch.testing.assert_close(state, alone_state, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(
    ("length", "chunk_size"),
    [(1, 8), (2, 8), (7, 8), (8, 8), (13, 4), (9, 1), (6, 2), (41, 16), (64, 32), (70, 64)],
)
def test_chunks_equal_the_reference_and_its_gradients(decay, length, chunk_size):
    arguments = inputs(length, decay, seed=length)
    expected = results_and_gradients(gated_delta_rule_reference, arguments)
    actual = results_and_gradients(gated_delta_rule, arguments, chunk_size=chunk_size)
    assert_same(actual, expected, **EXACT)


@pytest.mark.parametrize("decay", DECAYS)
def test_no_initial_state_is_one_of_zeros(decay):
    arguments = inputs(21, decay)
    del arguments["initial_state"]
    expected = results_and_gradients(gated_delta_rule_reference, arguments)
    assert_same(results_and_gradients(gated_delta_rule, arguments, chunk_size=8), expected, **EXACT)
    zeros = torch.zeros(B, N, D, V, dtype=torch.float64)
    torch.testing.assert_close(gated_delta_rule(**arguments, initial_state=zeros)[0], expected["output"], **EXACT)


DOCUMENTS = {
    "none": (),
    "at the first token": ((0, 0),),
    "inside a chunk": ((0, 3), (1, 12)),
    "where chunks meet": ((0, 8), (1, 16)),
    "several in one chunk": ((0, 9), (0, 11), (0, 12), (1, 0), (1, 1)),
    "at the last token": ((0, 20), (1, 19)),
    "every token": tuple((0, place) for place in range(21)),
}


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("places", DOCUMENTS.values(), ids=DOCUMENTS)
def test_chunks_reset_the_state_where_documents_start(decay, places):
    arguments, starts = inputs(21, decay), starts_at(21, *places)
    expected = results_and_gradients(gated_delta_rule_reference, arguments, document_starts=starts)
    actual = results_and_gradients(gated_delta_rule, arguments, document_starts=starts, chunk_size=8)
    assert_same(actual, expected, **EXACT)


@pytest.mark.parametrize("decay", DECAYS)
def test_pieces_with_a_carried_state_equal_the_whole(decay):
    arguments, starts = inputs(40, decay), starts_at(40, (0, 7), (1, 23))
    expected = gated_delta_rule(**arguments, document_starts=starts, chunk_size=16)
    state, outputs, begin = arguments.pop("initial_state"), [], 0
    for size in (1, 6, 20, 1, 2, 10):
        piece = {name: tensor[:, begin : begin + size] for name, tensor in arguments.items()}
        piece_starts = starts[:, begin : begin + size]
        output, state = gated_delta_rule(**piece, initial_state=state, document_starts=piece_starts, chunk_size=16)
        outputs.append(output)
        begin += size
    torch.testing.assert_close((torch.cat(outputs, dim=1), state), expected, **EXACT)


def decays_of_all_sizes() -> Tensor:
    """Returns decays from -20 to -20 millionths, with ten consecutive tokens that reset the state."""
    exponents = torch.rand(B, 80, N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    log_decay = -20.0 * 10 ** (-6 * exponents)
    log_decay[:, 30:40] = -20.0
    return log_decay


def weak_decays_behind_extreme_ones() -> Tensor:
    log_decay = decays_of_all_sizes() / 100
    log_decay[:, ::16] = -2000.0
    return log_decay


STRONG_DECAYS = {
    "-20 at every token": torch.full((B, 80, N, D), -20.0),
    "of all sizes": decays_of_all_sizes(),
    "weak ones behind extreme ones": weak_decays_behind_extreme_ones(),
    "none": torch.zeros(B, 80, N, D),
}


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("log_decay", STRONG_DECAYS.values(), ids=STRONG_DECAYS)
def test_strong_decays_are_as_exact_in_float32_as_weak_ones(decay, log_decay):
    arguments = inputs(80, decay) | {"log_decay": log_decay if decay == "by channel" else log_decay[..., 0]}
    single = {name: tensor.float() for name, tensor in arguments.items()}
    expected = results_and_gradients(gated_delta_rule_reference, {name: x.double() for name, x in single.items()})
    actual = results_and_gradients(gated_delta_rule, single, chunk_size=64)
    # Sums of 80 products of order one, each rounded to 2^-24. Differences of sums that reach 20 · 64 would have errors
    # of 1e-4 in the exponent, and of 1e-2 after -2000.
    assert_same(actual, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("decay", DECAYS)
def test_autocast_changes_nothing(decay):
    arguments = {name: tensor.float() for name, tensor in inputs(40, decay).items()}
    expected = gated_delta_rule(**arguments)
    with torch.autocast("cpu", torch.bfloat16):
        actual = gated_delta_rule(**arguments)
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("length", [1, 40])
@pytest.mark.parametrize("function", [gated_delta_rule_reference, gated_delta_rule])
def test_the_state_is_float32_for_inputs_in_bfloat16(function, length):
    arguments = {name: tensor.bfloat16() for name, tensor in inputs(length, "by head").items()}
    output, state = function(**arguments)
    expected, expected_state = function(**{name: tensor.float() for name, tensor in arguments.items()})
    assert (output.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(state, expected_state, rtol=0.0, atol=0.0)  # the inputs are the same numbers
    torch.testing.assert_close(output, expected.bfloat16(), rtol=0.0, atol=0.0)
