"""Settings of parameters live on the modules that own them, whatever becomes of the parameters."""

import copy

import pytest
import torch
from torch import nn

from ml.config import child
from ml.layers import Parameter, ones
from ml.layers.parameter import adopt_settings, named_settings
from ml.models import materialize, named_parameters_with_scales


class Plain(nn.Module):
    """A layer of a user: derived from nothing of ours, with parameters that are built in the plain way."""

    def __init__(self, lr_scale: float = 1.0):
        super().__init__()
        self.weight = child("weight", Parameter, (2, 3), initialization=ones, lr_scale=lr_scale, weight_decay=0.25)
        self.bias = None


def pair() -> nn.Module:
    first, second = Plain(0.5), Plain()
    tied = Plain()
    tied.weight = first.weight
    return nn.ModuleDict({"first": first, "second": second, "tied": tied})


def settings(model: nn.Module) -> list:
    return [(name, found.lr_scale, found.weight_decay) for name, _, found in named_settings(model)]


EXPECTED = [("first.weight", 0.5, 0.25), ("second.weight", 1.0, 0.25)]
CHANGES = {
    "nothing": lambda model: model,
    "a deep copy": copy.deepcopy,
    "a deep copy of a part": lambda model: nn.ModuleDict(
        {"first": copy.deepcopy(model["first"]), "second": model["second"]}
    ),
    "another type": lambda model: model.to(torch.float64),
    "other memory": lambda model: model.to("meta").to_empty(device="cpu"),
    "materialized": materialize,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_settings_survive(change):
    model = pair()
    assert settings(model) == EXPECTED  # also before they are adopted
    adopt_settings(model)
    adopt_settings(model)
    assert all(not vars(parameter) for parameter in model.parameters())
    changed = change(model)
    assert settings(changed)[:2] == EXPECTED  # torch unties parameters where it gives them other memory
    assert [scaled.lr_scale for scaled in named_parameters_with_scales(changed)][:2] == [0.5, 1.0]
    materialize(changed)
    assert all(parameter.eq(1.0).all() for parameter in changed.parameters())


def test_parameters_that_a_sharding_replaces_keep_the_settings():
    model = pair()
    adopt_settings(model)
    model["second"].weight = nn.Parameter(torch.zeros(1, 3))
    assert settings(model) == EXPECTED


def test_a_parameter_that_is_built_again_has_its_new_settings():
    model = pair()
    adopt_settings(model)
    model["second"].weight = Parameter((2, 3), lr_scale=2.0)
    adopt_settings(model)
    assert settings(model) == [EXPECTED[0], ("second.weight", 2.0, None)]
