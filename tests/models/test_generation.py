"""Generation: sampling against transformers, cached against uncached, many prompts against one."""

from functools import partial

import pytest
import torch
from devices import CUDA
from mixer_cases import MIXERS
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from ml.blocks import DecoderBlock, Pattern, Repeat
from ml.layers import Attention, Cache, Embeddings, GatedDeltaNet, LongRotary, Mamba2, PositionEmbedding
from ml.models import LanguageModel, materialize
from ml.models.generation import generate
from ml.models.sampling import Sampler

V, H = 40, 32
ATTENTION = partial(Attention, num_heads=4)
SAMPLERS = {
    "temperature": (Sampler(0.7), [TemperatureLogitsWarper(0.7)]),
    "top k": (Sampler(top_k=5), [TopKLogitsWarper(5)]),
    "top k of all": (Sampler(top_k=1000), []),
    "top p": (Sampler(top_p=0.6), [TopPLogitsWarper(0.6)]),
    "min p": (Sampler(min_p=0.2), [MinPLogitsWarper(0.2)]),
    "all": (
        Sampler(1.5, 20, 0.8, 0.1),
        [TemperatureLogitsWarper(1.5), TopKLogitsWarper(20), TopPLogitsWarper(0.8), MinPLogitsWarper(0.1)],
    ),
}


def random_logits(seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(6, V, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("sampler", "warpers"), SAMPLERS.values(), ids=SAMPLERS)
def test_probabilities_are_those_of_transformers(sampler, warpers):
    logits = expected = random_logits()
    for warper in warpers:
        expected = warper(None, expected)
    torch.testing.assert_close(sampler.probabilities(logits), expected.softmax(-1))


@pytest.mark.parametrize("spread", [0.01, 3.0], ids=["flat", "peaked"])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999, 1.0])
def test_the_nucleus_of_a_large_vocabulary_is_that_of_transformers(top_p, spread):
    logits = spread * torch.randn(3, 5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    expected = TopPLogitsWarper(top_p)(None, logits) if top_p < 1.0 else logits
    found = Sampler(top_p=top_p).probabilities(logits)
    # Sums over thousands of float32 numbers, in another order, may end one token earlier or later.
    assert ((found > 0).sum(-1) - expected.isfinite().sum(-1)).abs().max() <= 1
    torch.testing.assert_close(found, expected.softmax(-1), rtol=1e-2, atol=2e-4)


@pytest.mark.parametrize("temperature", [1e-40, 1e30])
def test_extreme_temperatures_have_finite_probabilities(temperature):
    probabilities = Sampler(temperature, min_p=0.5, top_p=0.9).probabilities(random_logits())
    assert probabilities.isfinite().all()
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(6))


def test_a_temperature_of_zero_selects_the_most_likely_token():
    logits = random_logits()
    drawn = Sampler(0.0).draw(logits, torch.rand(6, dtype=torch.float64))
    assert torch.equal(drawn, logits.argmax(-1))


def test_draws_follow_the_probabilities():
    sampler, logits = Sampler(0.9, top_k=6), random_logits()[:1]
    uniform = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    counts = sampler.draw(logits.expand(20_000, -1), uniform).bincount(minlength=V) / 20_000
    # An even grid of 20,000 numbers meets each interval within one of them.
    torch.testing.assert_close(counts, sampler.probabilities(logits)[0], rtol=0, atol=1e-4)


def test_the_ends_of_the_range_draw_a_token_that_has_a_probability():
    sampler, logits = Sampler(top_k=3), random_logits()
    for number in (0.0, 1.0 - 2**-53):
        drawn = sampler.draw(logits, torch.full((6,), number, dtype=torch.float64))
        assert sampler.probabilities(logits).gather(1, drawn[:, None]).gt(0).all()


MODELS = {
    "attention": partial(Repeat, num_blocks=2, block=partial(DecoderBlock, mixer=ATTENTION)),
    "a window": partial(Repeat, num_blocks=2, block=partial(DecoderBlock, mixer=partial(ATTENTION, window_size=4))),
    "hybrid": partial(
        Pattern,
        blocks={
            "ssm": partial(DecoderBlock, mixer=partial(Mamba2, head_size=16, state_size=8)),
            "delta": partial(DecoderBlock, mixer=partial(GatedDeltaNet, num_heads=2)),
            "full": partial(DecoderBlock, mixer=ATTENTION),
        },
        pattern=["ssm", "delta", "full"],
    ),
}
PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5]]


def build(decoder, seed=0, **options) -> LanguageModel:
    model = materialize(LanguageModel(vocab_size=V, hidden_size=H, decoder=decoder, **options), seed=seed).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # so that the most likely token does not depend on rounding
    return model


def texts(model, prompts=PROMPTS, num_tokens=20, sampler=Sampler(0.0), seed=0, **options) -> list[list[int]]:  # noqa: B008
    return torch.stack(list(generate(model, prompts, num_tokens, sampler, seed, **options)), dim=1).tolist()


@pytest.mark.parametrize("sampler", [Sampler(0.0), Sampler(0.9, top_p=0.9)], ids=["greedy", "drawn"])
@pytest.mark.parametrize("decoder", MODELS.values(), ids=MODELS)
def test_cached_text_equals_uncached_and_prompts_are_independent(decoder, sampler):
    model = build(decoder)
    expected = texts(model, sampler=sampler, use_cache=False)
    assert texts(model, sampler=sampler) == expected
    assert texts(model, PROMPTS[:1], sampler=sampler) == expected[:1]
    assert len({tuple(text) for text in expected}) > 1


@pytest.mark.parametrize("case", MIXERS.values(), ids=MIXERS)
def test_every_mixer_decodes_the_result_of_one_pass(case):
    model = build(partial(Repeat, num_blocks=2, block=partial(DecoderBlock, mixer=case)), seed=2)
    expected = texts(model, PROMPTS, 40, use_cache=False)
    assert texts(model, PROMPTS, 40) == expected
    assert len({tuple(text) for text in expected}) > 1


@pytest.mark.gpu
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("decoder", MODELS.values(), ids=MODELS)
def test_a_gpu_writes_the_text_of_the_cpu(decoder, use_cache):
    model = build(decoder)
    expected = texts(model)
    assert texts(model.to(CUDA), use_cache=use_cache) == expected


@pytest.mark.slow
def test_hundreds_of_tokens_equal_those_without_a_cache():
    window = partial(DecoderBlock, mixer=partial(ATTENTION, window_size=64))
    blocks = {**MODELS["hybrid"].keywords["blocks"], "window": window}
    model = build(partial(Pattern, blocks=blocks, pattern=list(blocks)))
    assert texts(model, [[1, 2, 3, 4]], 520) == texts(model, [[1, 2, 3, 4]], 520, use_cache=False)


def test_a_shorter_text_is_a_prefix_of_a_longer_one():
    model = build(MODELS["attention"])
    long = texts(model, sampler=Sampler(), num_tokens=300)  # random numbers are drawn 256 at a time
    assert texts(model, sampler=Sampler(), num_tokens=20) == [text[:20] for text in long]


def test_generation_keeps_no_graph_and_computes_only_the_last_logits():
    model, tokens = build(MODELS["hybrid"]), torch.randint(0, V, (2, 9))
    (drawn,) = generate(model, tokens.tolist(), 1, Sampler())
    assert drawn.is_inference()
    whole = model(tokens)
    torch.testing.assert_close(model(tokens, num_logits=1), whole[:, -1:])
    torch.testing.assert_close(model(tokens, num_logits=4), whole[:, -4:])


def test_choices_are_the_first_tokens_of_the_vocabulary():
    model = build(MODELS["attention"])
    drawn = torch.tensor(texts(model, sampler=Sampler(3.0), num_tokens=60))
    assert drawn.max() >= 10
    assert torch.tensor(texts(model, sampler=Sampler(3.0), num_tokens=60, num_choices=10)).max() < 10


def test_only_the_seed_changes_the_samples():
    model = build(MODELS["attention"])
    first = texts(model, sampler=Sampler(), seed=1)
    torch.manual_seed(5)
    assert texts(model, sampler=Sampler(), seed=1) == first
    assert texts(model, sampler=Sampler(), seed=2) != first


def test_more_tokens_than_positions_and_empty_prompts_are_refused():
    embeddings = partial(Embeddings, position=partial(PositionEmbedding, num_positions=12))
    model = build(MODELS["attention"], embeddings=embeddings)
    assert len(texts(model, num_tokens=5)[0]) == 5
    with pytest.raises(ValueError, match="a prompt of 7 tokens and 6 more are beyond the model's 12 positions"):
        texts(model, num_tokens=6)
    for prompts in ([[1], []], []):
        with pytest.raises(ValueError, match="one token or more"):
            texts(model, prompts)


LONG = partial(LongRotary, original_length=8, theta=100.0, short_factors=[1.0, 1.1, 1.2, 1.3], long_factors=[4.0])


def long_model():
    block = partial(DecoderBlock, mixer=partial(ATTENTION, rotary=LONG))
    model = materialize(LanguageModel(vocab_size=V, hidden_size=H, decoder=partial(Repeat, num_blocks=2, block=block)))
    for parameter in model.parameters():
        parameter.data.mul_(3)  # far from uniform
    return model.eval()


def test_texts_that_grow_beyond_the_short_factors_are_those_of_full_passes():
    """Each of the prompts passes the length at another token."""
    model, prompts = long_model(), [[1, 2, 3], [4, 5, 6, 7, 8], list(range(9, 18))]
    expected = list(generate(model, prompts, 9, Sampler(0.0), use_cache=False))
    assert torch.equal(torch.stack(list(generate(model, prompts, 9, Sampler(0.0)))), torch.stack(expected))
    assert model.obstacle_to_decoding is None
    unlike = [one[0] for one in generate(model, [prompts[0]], 9, Sampler(0.0))]
    assert torch.equal(torch.stack(unlike), torch.stack(expected)[:, 0])


@pytest.mark.parametrize("documents", [None, torch.tensor([[-1] * 2 + [0] * 8])], ids=["rows", "padded rows"])
@torch.no_grad()
def test_a_cache_that_grows_beyond_the_short_factors_is_an_error(documents):
    model, tokens = long_model(), torch.arange(10)[None]
    pieces, cache = [slice(0, 7), slice(7, 8), slice(8, 10)], Cache()
    for piece in pieces[: 2 if documents is None else 3]:
        model(tokens[:, piece], documents=None if documents is None else documents[:, piece], cache=cache)
    following = None if documents is None else torch.tensor([[0]])
    with pytest.raises(ValueError, match=r"beyond LongRotary.original_length \(8\): pass all of its tokens with a new"):
        model(torch.tensor([[3]]), documents=following, cache=cache)
