"""The walk over modules yields what torch yields, in the same order."""

from torch import nn

import ml
from ml.layers.walk import all_modules, named_modules


def test_the_walk_equals_that_of_torch():
    shared = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model = nn.Module()
    model.first = nn.ModuleDict({"a": shared, "b": nn.ModuleList([shared[0], nn.Dropout()])})
    model.second = shared
    model.third = nn.Identity()
    model.register_module("none", None)
    assert named_modules(model) == list(model.named_modules())
    assert all_modules(model) == list(model.modules())


def test_the_walk_over_a_model_equals_that_of_torch():
    model = ml.build(ml.load("recipes/tiny.gin"), "meta")
    assert named_modules(model) == list(model.named_modules())
    assert all_modules(model) == list(model.modules())
    assert named_modules(model.decoder) == list(model.decoder.named_modules())
