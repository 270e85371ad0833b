"""Blocks and experts that are copied equal those that are built one by one, and share nothing with the original."""

import functools
import types

import pytest
import torch
from torch import nn

import ml
from ml.blocks import DecoderBlock
from ml.config import configurable
from ml.layers import GatedMLP
from ml.layers.copying import ModuleCopier
from ml.models import LanguageModel

TINY_EXPERTS = ["LanguageModel.hidden_size = 64", "LanguageModel.vocab_size = 256"]
RECOMPUTATION = "DecoderBlock.activation_checkpointing = @SelectiveActivationCheckpointing"
SMALL = {
    "tiny": ("recipes/tiny.gin", []),
    "sliding windows": ("models/gemma3_1b.gin", []),
    "experts": ("models/mixtral_8x7b.gin", ["decoder/Repeat.num_blocks = 3"]),
    "kinds of blocks": ("models/hybrid_1.5b.gin", []),
    "adapters": ("recipes/lora.gin", []),
    "shared weights": ("recipes/tiny.gin", ["Repeat.shared = True"]),
    "recomputation": (
        "recipes/tiny.gin",
        [RECOMPUTATION],
    ),
    "depth": ("recipes/tiny.gin", ["output/Linear.weight_initialization = @scaled_normal"]),
    "one frozen": ("recipes/tiny.gin", ["block_1/DecoderBlock.lr_scale = 0.0"]),
    **{
        mixer: ("recipes/tiny.gin", [f"DecoderBlock.mixer = @{mixer}", *options])
        for mixer, options in {
            "Mamba": [],
            "Mamba2": [],
            "GatedDeltaNet": [],
            "KimiDeltaAttention": [],
            "LatentAttention": [],
            "ShortConvolutionMixer": [],
        }.items()
    },
}


def described(model: nn.Module) -> dict[str, object]:
    """Everything in a model, with modules and parameters by their first names."""
    names: dict[int, str] = {id(module): f"module {name}" for name, module in model.named_modules()}
    names |= {id(parameter): f"parameter {name}" for name, parameter in model.named_parameters()}

    def shown(value: object) -> object:
        if isinstance(value, nn.Module):
            return names[id(value)]
        if isinstance(value, torch.Tensor):
            facts = (value.shape, value.dtype, value.device, value.requires_grad, type(value))
            return names.get(id(value), "tensor"), facts, shown(vars(value))
        if isinstance(value, dict):
            return type(value), [(key, shown(item)) for key, item in value.items()]
        if isinstance(value, list | tuple):
            return type(value), [shown(item) for item in value]
        if isinstance(value, functools.partial):
            return shown((value.func, value.args, value.keywords))
        if isinstance(value, int | float | str | set | frozenset | type | torch.dtype | types.FunctionType | None):
            return value
        if isinstance(value, types.BuiltinFunctionType | types.MethodDescriptorType):
            return value
        return type(value), shown(vars(value))

    return {name: (type(module), shown(vars(module))) for name, module in model.named_modules()}


def loaded(file: str, bindings: list[str]) -> tuple[ml.Config, LanguageModel]:
    config = ml.load(file, bindings)
    with torch.device("meta"):
        return config, config.build(LanguageModel)


def containers(module: nn.Module) -> set[int]:
    found = set()
    for inner in module.modules():
        found |= {id(value) for value in vars(inner).values() if isinstance(value, dict | list | set)}
    return found


@pytest.mark.parametrize("name", SMALL)
def test_copied_blocks_equal_blocks_that_are_built(name, monkeypatch):
    file, bindings = SMALL[name]
    config, model = loaded(file, bindings)
    monkeypatch.setattr(ModuleCopier, "copies_of", lambda *_: None)
    one_by_one, expected = loaded(file, bindings)
    assert described(model) == described(expected)
    assert config.operative == one_by_one.operative
    assert list(config.records()) == list(one_by_one.records())


def test_blocks_share_no_container_with_each_other():
    model = ml.build(ml.load("models/mixtral_8x7b.gin", ["decoder/Repeat.num_blocks = 2", *TINY_EXPERTS]), "meta")
    first, second = model.decoder.children()
    assert not set(first.modules()) & set(second.modules())
    assert not set(first.parameters()) & set(second.parameters())
    assert not containers(first) & containers(second)


_built: list[str] = []


@configurable
class CountedBlock(DecoderBlock):
    def __init__(self, hidden_size: int):
        super().__init__(hidden_size)
        _built.append("block")


@configurable
class CountedMLP(GatedMLP):
    def __init__(self, hidden_size: int):
        super().__init__(hidden_size)
        _built.append("mlp")


@pytest.mark.parametrize("binding", ["Repeat.block = @CountedBlock", "DecoderBlock.mlp = @CountedMLP"])
def test_a_custom_constructor_is_called_for_every_block(binding):
    config = ml.load("base.gin", ["decoder/Repeat.num_blocks = 5", binding])
    _built.clear()
    config.build(LanguageModel)
    assert len(_built) == 5


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = self.second = nn.Parameter(torch.arange(3.0))
        self.register_buffer("table", torch.arange(4))
        self.kept = (self, [self.first])


def test_buffers_and_tied_parameters_are_copied_once():
    original = Tied()
    copy = ModuleCopier().copies_of(original)()
    assert copy.first is copy.second is copy.kept[1][0] is not original.first
    assert copy.kept[0] is copy
    assert torch.equal(copy.first, original.first)
    assert torch.equal(copy.table, original.table)
    assert copy.table is not original.table


def test_a_module_with_an_attribute_that_cannot_be_copied_is_refused():
    module = nn.Module()
    module.generator = (i for i in range(3))
    assert ModuleCopier().copies_of(module) is None
