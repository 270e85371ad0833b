"""Every configurable norm, rotary embedding, activation, adapter and kernel on CUDA, on a machine that has no GPU.

What is seen and what is not: test_training_without_gpu.py.
"""

from functools import partial

import pytest
import torch
from cuda_rules import RuleBroken
from torch.nn import functional as F
from training_on_cuda import CUDA

from ml.blocks import DecoderBlock
from ml.config.configurable import candidates, known_names
from ml.layers import MLP, Attention, Context, Float8, Linear, normalization
from ml.layers.attention_kernels import AttentionKernel, flex
from ml.layers.context import places_in_documents
from ml.layers.mlp import GatedMLP
from ml.layers.protocol import Adapter
from ml.layers.rotary import RotaryEmbedding
from ml.models import materialize

B, T, H = 2, 24, 32
ATTENTION = partial(Attention, num_heads=2, num_kv_heads=1)
OPTIONS = {"LongRotary": {"long_factors": [2.0], "short_factors": [1.0], "factor": 2.0, "original_length": 16}}
OTHERS = {"GatedRMSNorm", "TwoDimensionalRotary"}  # of mixers and of images


def configurables(module: str, base: type = object) -> dict[str, partial]:
    """Returns the configurables of a module in ml.layers, or the subclasses of a base."""
    infos = [info for name in known_names() for info in candidates(name)]
    targets = {
        info.name: info.target
        for info in infos
        if info.selector.startswith(f"ml.layers.{module}") and info.name not in OTHERS
    }
    return {
        name: partial(target, **OPTIONS.get(name, {}))
        for name, target in sorted(targets.items())
        if base is object or (isinstance(target, type) and issubclass(target, base))
    }


REFUSED = {
    "DotProductAttention": (ValueError, r"needs a mask \(T, S\): take @AutomaticAttention"),
    "VariableLengthAttention": (RuleBroken, r"nonzero.*variable_length\.py"),  # it counts the documents
}
KERNELS = configurables("attention_kernels", AttentionKernel)
BLOCKS = {
    **{name: partial(DecoderBlock, normalization=norm) for name, norm in configurables("normalization").items()},
    **{
        name: partial(DecoderBlock, mixer=partial(ATTENTION, rotary=rotary))
        for name, rotary in configurables("", RotaryEmbedding).items()
    },
    **{
        name: partial(DecoderBlock, mlp=partial(MLP, intermediate_size=48, activation=activation))
        for name, activation in configurables("activations").items()
    },
    **{
        name: partial(
            DecoderBlock, mlp=partial(GatedMLP, linear=partial(Linear, apply_peft=partial(adapter, dropout=0.1)))
        )
        for name, adapter in configurables("", Adapter).items()
    },
}


def trained(block, cuda, dtype, may_synchronize=lambda place: False):
    """Takes a forward and a backward pass of a block, on packed documents."""
    is_ready = False
    with cuda(lambda place: not is_ready or may_synchronize(place)):
        layer = materialize(block(H), CUDA)
        x = torch.ones(B, T, H, device=CUDA, requires_grad=True)
        documents = torch.zeros(B, T, dtype=torch.int64, device=CUDA)
        context = Context(places_in_documents(documents), documents, num_tokens=T)
        is_ready = True
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            output = layer(x, context)
        output.float().square().sum().backward()
    assert (x.grad.device, x.grad.shape) == (CUDA, x.shape)
    assert all(parameter.grad.device == CUDA for parameter in layer.parameters() if parameter.grad is not None)


def test_the_cases_are_all_that_there_is():
    assert {"RMSNorm", "LongRotary", "silu", "DoRA"} <= BLOCKS.keys()
    assert {"FlexAttention", "VariableLengthAttention"} <= KERNELS.keys()
    assert {name for name in vars(normalization) if name.endswith("Norm")} - OTHERS <= BLOCKS.keys()


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_a_block_trains(block, cuda):
    trained(partial(block, **({"mixer": ATTENTION} if "mixer" not in block.keywords else {})), cuda, torch.bfloat16)


@pytest.mark.parametrize("is_native", [True, False], ids=["native", "emulated"])
@pytest.mark.parametrize("scaling", ["tensorwise", "rowwise"])
def test_products_in_float8_train(scaling, is_native, cuda, monkeypatch):
    monkeypatch.setattr(Float8, "_is_native", lambda *_: is_native)
    linear = partial(Linear, kernel=partial(Float8, scaling))
    trained(partial(DecoderBlock, mixer=ATTENTION, mlp=partial(GatedMLP, linear=linear)), cuda, torch.bfloat16)


@pytest.fixture
def masks(monkeypatch):
    """Replaces the generated kernel of FlexAttention, and records the sizes of the masks that are made for it."""
    made = []

    def attention(query, key, value, *, score_mod, block_mask, scale, enable_gqa, return_aux):
        made.extend(tensor.numel() for tensor in (block_mask.kv_indices, block_mask.full_kv_indices))
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=enable_gqa)

    monkeypatch.setattr(flex, "_function", lambda *_: attention)
    monkeypatch.setattr(flex, "has_triton", lambda: True)
    return made


@pytest.mark.parametrize("window_size", [None, 5])
@pytest.mark.parametrize("kernel", KERNELS)
def test_an_attention_kernel_trains(kernel, window_size, cuda, masks):
    mixer = partial(ATTENTION, window_size=window_size, kernel=KERNELS[kernel])
    block = partial(DecoderBlock, mixer=mixer, mlp=None)
    if (refusal := REFUSED.get(kernel)) is None:
        trained(block, cuda, torch.bfloat16)
    else:
        with pytest.raises(refusal[0], match=refusal[1]):
            trained(block, cuda, torch.bfloat16)
    assert bool(masks) == (kernel in ("AutomaticAttention", "FlexAttention"))
    assert sum(masks) < T * T
