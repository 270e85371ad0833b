"""Initial values: a function of the seed and the parameter's name, and of nothing else."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from ml.blocks import DecoderBlock, Repeat
from ml.config import child
from ml.layers import MLP, Attention, Buffered, GatedMLP, Linear, scaled_normal
from ml.models import LanguageModel, materialize

ATTENTION = partial(Attention, num_heads=2)


def build(num_blocks=2, tied=False, mixer=ATTENTION, hidden_size=8, mlp=GatedMLP, device="meta") -> LanguageModel:
    with torch.device(device):
        return LanguageModel(
            vocab_size=20,
            hidden_size=hidden_size,
            decoder=partial(Repeat, block=partial(DecoderBlock, mixer=mixer, mlp=mlp), num_blocks=num_blocks),
            tie_word_embeddings=tied,
        )


def assert_equal_where_shared(first: nn.Module, second: nn.Module) -> None:
    ours, theirs = dict(first.named_parameters()), dict(second.named_parameters())
    shared = ours.keys() & theirs.keys()
    assert shared
    for name in shared:
        assert torch.equal(ours[name], theirs[name]), name


def test_values_do_not_depend_on_the_other_parameters_or_the_device_of_construction():
    model = materialize(build())
    assert_equal_where_shared(model, materialize(build(num_blocks=5)))
    assert_equal_where_shared(model, materialize(build(tied=True)))
    assert_equal_where_shared(model, materialize(build(device="cpu")))


def test_values_do_not_depend_on_the_order_or_the_global_generator():
    class Pair(nn.Module):
        def __init__(self, names):
            super().__init__()
            for name in names:
                setattr(self, name, Linear(3, 3))

    torch.manual_seed(0)
    first = materialize(Pair(["a", "b"]))
    torch.manual_seed(1)
    assert_equal_where_shared(first, materialize(Pair(["b", "a"])))
    assert not torch.equal(first.a.weight, first.b.weight)


def test_values_are_drawn_in_float32_and_rounded_to_the_dtype_of_the_parameter():
    expected = materialize(build()).to(torch.bfloat16)
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = build()
    finally:
        torch.set_default_dtype(torch.float32)
    assert_equal_where_shared(materialize(model), expected)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_seeds_give_different_values_and_the_values_of_a_seed_stay():
    first = materialize(build(), seed=1).head.weight
    assert not torch.equal(first, materialize(build(), seed=2).head.weight)
    # A change of these digits changes the start of every run.
    expected = torch.tensor([[-0.011104891, 0.020691719, 0.011452008, -0.010813175]])
    torch.testing.assert_close(first[:1, :4], expected, rtol=1e-5, atol=0)


def test_ties_frozen_parameters_and_settings_survive():
    frozen = partial(ATTENTION, lr_scale=0.0)
    model = materialize(build(tied=True, mixer=frozen))
    assert model.tied_weight is model.embeddings.token.weight
    for name, parameter in model.named_parameters():
        assert parameter.device.type == "cpu"
        assert parameter.requires_grad == (".mixer." not in name)
    assert model.decoder.block_0.mlp_norm.parameter_settings["weight"].weight_decay == 0.0


def test_a_parameter_held_twice_is_made_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = child("first", Linear, 3, 3)
            self.second = child("second", Linear, 3, 3)
            self.second.weight = self.first.weight

    with torch.device("meta"):
        model = Twice()
    materialize(model)
    assert model.second.weight is model.first.weight
    assert not model.first.weight.is_meta


@pytest.mark.parametrize(("num_layers", "depth"), [(None, 8), (3, 3)])
def test_scaled_normal_takes_the_depth_of_its_sequence_unless_it_is_set(num_layers, depth):
    initialization = partial(scaled_normal, std=0.5, num_layers=num_layers)
    mixer = partial(ATTENTION, linear=partial(Linear, weight_initialization=initialization))
    model = materialize(build(num_blocks=8, mixer=mixer, hidden_size=64))
    weights = torch.cat([block.mixer.output.weight.flatten() for block in model.decoder.blocks])
    # The standard deviation of 32,768 draws is within 2 % for any seed that one would meet.
    assert weights.std().item() == pytest.approx(0.5 / math.sqrt(2 * depth), rel=0.02)


@pytest.mark.parametrize(("mlp", "branches"), [(MLP, 16), (None, 8)])
def test_scaled_normal_counts_the_branches_of_the_blocks(mlp, branches):
    mixer = partial(ATTENTION, linear=partial(Linear, weight_initialization=partial(scaled_normal, std=0.5)))
    model = materialize(build(num_blocks=8, mixer=mixer, hidden_size=64, mlp=mlp))
    weights = torch.cat([block.mixer.output.weight.flatten() for block in model.decoder.blocks])
    assert weights.std().item() == pytest.approx(0.5 / math.sqrt(branches), rel=0.02)  # as above


def test_scaled_normal_outside_of_a_sequence_names_the_parameter():
    layer = nn.Sequential(Linear(4, 4, weight_initialization=scaled_normal))
    with pytest.raises(ValueError, match=r"parameter 0\.weight cannot be initialized: scaled_normal\.num_layers"):
        materialize(layer)


def test_buffers_are_recomputed_and_a_module_that_cannot_is_refused():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("places", torch.arange(4), persistent=False)

    class Resettable(Buffered, Counter):
        def reset_buffers(self, device):
            self.places = torch.arange(4, device=device)

    with torch.device("meta"):
        good, bad = Resettable(), nn.Sequential(Counter())
    assert materialize(good).places.tolist() == [0, 1, 2, 3]
    with pytest.raises(
        ValueError, match=r"^0 \(Counter\) has the buffer places and .*derive it from ml\.layers\.Buffered"
    ):
        materialize(bad)


def test_a_parameter_that_was_not_built_by_parameter_is_refused():
    with pytest.raises(ValueError, match="parameter weight was not built by `Parameter`"):
        materialize(nn.Linear(2, 2))


def test_the_default_initialization_is_the_one_of_gpt2():
    weight = materialize(Linear(200, 200)).weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert weight.mean().item() == pytest.approx(0.0, abs=4 * 0.02 / 200)  # four standard errors
