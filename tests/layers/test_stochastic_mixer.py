"""A mixer sampled in each step."""

from functools import partial

import pytest
import torch

from ml.layers import Attention, Context, ShortConvolutionMixer, StochasticMixer
from ml.models import flops_per_token, materialize

H = 16
MIXERS = {"full": partial(Attention, num_heads=4), "short": ShortConvolutionMixer}


def build(**options) -> StochasticMixer:
    return materialize(StochasticMixer(H, **{"mixers": MIXERS, **options}))


def draws(layer: StochasticMixer, count: int = 200) -> list[str]:
    drawn = []
    for seed in range(count):
        layer.draw(torch.Generator().manual_seed(seed))
        drawn.append(layer.drawn)
    return drawn


@pytest.mark.parametrize(("options", "main"), [({}, "full"), ({"main": "short"}, "short")])
def test_training_uses_the_sampled_mixer_and_evaluation_the_main_one(options, main):
    layer, x = build(**options), torch.randn(2, 7, H)
    for name in draws(layer, 8):
        layer.drawn = name
        assert torch.equal(layer.train()(x, Context()), getattr(layer, name)(x, Context()))
        assert torch.equal(layer.eval()(x, Context()), getattr(layer, main)(x, Context()))


def test_the_main_mixer_is_used_before_the_first_sample():
    layer, x = build(main="short"), torch.randn(2, 7, H)
    assert torch.equal(layer.train()(x, Context()), layer.short(x, Context()))


def test_draws_follow_the_weights_and_the_generator():
    assert draws(build()) == draws(build())
    assert set(draws(build(weights={"full": 1.0, "short": 0.0}))) == {"full"}
    # 200 draws with 9/10: the standard deviation is 4.2.
    assert draws(build(weights={"full": 1.0, "short": 9.0})).count("short") == pytest.approx(180, abs=17)


def test_flops_are_the_expected_value():
    layer = build(weights={"full": 1.0, "short": 3.0})
    alone = [flops_per_token(build(mixers={name: mixer}), 50) for name, mixer in MIXERS.items()]
    assert flops_per_token(layer, 50) == pytest.approx(0.25 * alone[0] + 0.75 * alone[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixers": {}}, "mixers must name one mixer or more"),
        ({"mixers": {"forward": ShortConvolutionMixer}}, "mixers must have names that can be attributes, not forward"),
        ({"mixers": {"a b": ShortConvolutionMixer}}, "names that can be attributes, not a b"),
        ({"weights": {"full": 1.0}}, "weights must be given for full, short"),
        ({"weights": {"full": -1.0, "short": 2.0}}, "weights must be finite and not negative, nor all zero"),
        ({"weights": {"full": 0.0, "short": 0.0}}, "weights must be finite and not negative, nor all zero"),
        ({"main": "long"}, "main must be one of full, short, not long"),
        ({"lr_scale": -1.0}, "lr_scale must be at least 0"),
    ],
)
def test_invalid_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
