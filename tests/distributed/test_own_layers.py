"""Layers of a user on the tensor axis: with a custom rule, without one, and where they are refused."""

import pytest
import torch
from processes import run_ranks
from tensor_models import assert_same_as_one_process, batch_of, small_model, tensor_mesh
from torch import nn

from ml.blocks import DecoderBlock
from ml.config import child, configurable
from ml.distributed import MeshError
from ml.distributed.rules import Split, register_rule
from ml.distributed.tensor import tensor_misfits, tensor_parallel
from ml.layers import Attention, Linear, Mixer
from ml.layers.children import weight_child
from ml.layers.initialization import ones
from ml.layers.protocol import Layer, NoProducts


def mean_so_far(x):
    """(B, T, ...): the mean over the positions up to each."""
    count = torch.arange(1, x.shape[1] + 1, dtype=x.dtype).view(-1, *[1] * (x.dim() - 2))
    return x.cumsum(1) / count


@configurable
class RunningMean(Mixer):
    """Each head averages over the positions so far, scaled by a learned factor of the head."""

    causal = True

    def __init__(self, hidden_size: int, *, num_heads: int = 4, lr_scale: float = 1.0):
        super().__init__(lr_scale)
        self.num_heads = num_heads
        self.inward = child("inward", Linear, hidden_size, 2 * hidden_size)
        self.outward = child("outward", Linear, 2 * hidden_size, hidden_size)
        self.factor = weight_child((num_heads,), ones, name="factor")

    def forward(self, x, context):
        heads = self.inward(x).unflatten(-1, (self.num_heads, -1))  # (B, T, N, D)
        return self.outward((mean_so_far(heads) * self.factor[:, None]).flatten(2))


register_rule(RunningMean, Split(columns=("inward",), rows=("outward",), vectors=("factor",), sizes=("num_heads",)))


@configurable
class RunningMeanWithoutRule(Mixer):
    causal = True

    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear = child("linear", Linear, hidden_size, hidden_size)

    def forward(self, x, context):
        return mean_so_far(self.linear(x))


@configurable
class ScaleWithoutRule(NoProducts):
    def __init__(self, size: int):
        super().__init__()
        self.weight = weight_child((size,), ones)

    def forward(self, x):
        return x * self.weight


@configurable
class ShiftingMLP(nn.Module):
    """Declares nothing, and reads the position before."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear = child("linear", Linear, hidden_size, hidden_size)

    def forward(self, x, context=None):
        return self.linear(nn.functional.pad(x, (0, 0, 1, 0))[:, :-1])


@configurable
class ScaledBlock(DecoderBlock):
    """Has a parameter besides those of its layers."""

    def __init__(self, hidden_size: int):
        super().__init__(hidden_size, activation_checkpointing=from_blocks)
        self.residual_weight = weight_child((hidden_size,), ones, name="residual_weight")

    def compute(self, x, context):
        return super().compute(x * self.residual_weight, context)


def from_blocks():
    from ml.blocks import ActivationCheckpointing

    return ActivationCheckpointing()


@configurable
class AttentionWithTemperature(Attention):
    def __init__(self, hidden_size: int):
        super().__init__(hidden_size)
        self.temperature = weight_child((1,), ones, name="temperature")


@configurable
class UndeclaredLinear(Layer):
    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.weight = weight_child((out_features, in_features), ones)

    def forward(self, x):
        return nn.functional.linear(x, self.weight)


@configurable
class UndeclaredEmbedding(NoProducts):
    def __init__(self, vocab_size: int, hidden_size: int):
        super().__init__()
        self.weight = weight_child((vocab_size, hidden_size), ones)

    def forward(self, tokens):
        return self.weight[tokens]


DIVIDED = {
    "mixer with a rule": ["DecoderBlock.mixer = @RunningMean"],
    "mixer without a rule": ["DecoderBlock.mixer = @RunningMeanWithoutRule"],
    "normalization without a rule": ["DecoderBlock.normalization = @ScaleWithoutRule"],
    "layer that declares nothing": ["DecoderBlock.mlp = @ShiftingMLP"],
    "block with a parameter": ["Repeat.block = @ScaledBlock"],
}
REFUSED = {
    "RunningMean.num_heads (3) is not divisible by Mesh.tensor (2)": [
        "DecoderBlock.mixer = @RunningMean",
        "RunningMean.num_heads = 3",
        "LanguageModel.hidden_size = 48",
    ],
    "Attention.query_norm (ScaleWithoutRule) has no rule for Mesh.tensor within a Attention": [
        "Attention.query_norm = @ScaleWithoutRule"
    ],
    "GatedMLP.gate (UndeclaredLinear) has no rule for Mesh.tensor within a GatedMLP": [
        "GatedMLP.linear = @UndeclaredLinear"
    ],
    "AttentionWithTemperature.temperature is not in the rule of AttentionWithTemperature for Mesh.tensor": [
        "DecoderBlock.mixer = @AttentionWithTemperature"
    ],
    "Embeddings.token (UndeclaredEmbedding) has no rule for Mesh.tensor": ["Embeddings.token = @UndeclaredEmbedding"],
}


def own_layers(world):
    for name, bindings in DIVIDED.items():
        model, batch = small_model(bindings), batch_of()
        for sequence in (False, True):
            try:
                _, many = assert_same_as_one_process(world, model, batch, sequence=sequence)
            except Exception as error:
                raise AssertionError(f"{name}, sequence={sequence}") from error
    return [str(parameter.placements) for parameter in many.parameters()]


def test_loss_and_gradients_of_own_layers():
    run_ranks(2, own_layers)


@pytest.mark.parametrize("message", REFUSED)
def test_layers_that_cannot_be_divided_are_named(message):
    (problem,) = tensor_misfits(small_model(REFUSED[message]), 2)
    assert problem.startswith(message)


def refused(world):
    for message, bindings in REFUSED.items():
        with pytest.raises(MeshError) as error:
            tensor_parallel(small_model(bindings), tensor_mesh(world), sequence=False)
        assert str(error.value).startswith(message)


def test_nothing_is_divided_that_is_refused():
    run_ranks(2, refused)
