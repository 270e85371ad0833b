"""Constructors of children that many layers have: shapes, weight decay and initialization."""

import pytest
import torch
from torch import nn

from ml.config import configurable
from ml.layers import Linear, RMSNorm, ones, zeros
from ml.layers.children import bias_child, optional_child, undecayed_child, weight_child
from ml.layers.parameter import settings_of


@configurable
class LayerOfChildren(nn.Module):
    """A layer with one child of each kind."""

    def __init__(self, *, bias: bool = True, bias_initialization=zeros, weight_initialization=ones, norm=RMSNorm):
        super().__init__()
        self.weight = weight_child((2, 3), weight_initialization)
        self.scale = weight_child((2,), weight_initialization, name="scale", is_decayed=False)
        self.bias = bias_child(bias, 2, bias_initialization)
        self.sign = undecayed_child("sign", (4,), ones)
        self.norm = optional_child("norm", norm, 5)


@pytest.mark.parametrize(
    ("name", "shape", "weight_decay", "value"),
    [("weight", (2, 3), None, 1.0), ("scale", (2,), 0.0, 1.0), ("bias", (2,), 0.0, 0.0), ("sign", (4,), 0.0, 1.0)],
)
def test_parameters_have_the_shape_weight_decay_and_initialization_of_the_layer(name, shape, weight_decay, value):
    layer = LayerOfChildren()
    settings = settings_of(layer, name)
    filled = torch.full(shape, 9.0)
    settings.initialization(filled, generator=torch.Generator())
    assert layer.get_parameter(name).shape == shape
    assert settings.weight_decay == weight_decay
    assert filled.eq(value).all()


def test_absent_children_are_none():
    layer = LayerOfChildren(bias=False, norm=None)
    assert layer.bias is None
    assert layer.norm is None
    assert [name for name, _ in layer.named_parameters()] == ["weight", "scale", "sign"]


def test_an_lr_scale_is_checked_by_the_base_class():
    assert Linear(2, 3, lr_scale=0.5).lr_scale == 0.5
    with pytest.raises(ValueError, match="lr_scale"):
        Linear(2, 3, lr_scale=-1.0)
