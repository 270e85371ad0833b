"""Layers: pure torch modules that gin wires. They know nothing of training, distribution or files."""

from ml.layers import dtypes as dtypes
from ml.layers.activations import gelu, relu, relu_squared, sigmoid, silu, tanh
from ml.layers.attention_kernels import (
    AttentionKernel,
    AutomaticAttention,
    BlockwiseAttention,
    DotProductAttention,
    FlexAttention,
    ReferenceAttention,
    VariableLengthAttention,
    attention_reference,
)
from ml.layers.context import Auxiliary, Cache, Context
from ml.layers.convolution import CausalConvolution
from ml.layers.embedding import Embeddings, PositionEmbedding, TokenEmbedding
from ml.layers.head import LanguageModelHead
from ml.layers.initialization import (
    constant,
    fan_in_uniform,
    kaiming_normal,
    kaiming_uniform,
    normal,
    ones,
    scaled_normal,
    truncated_normal,
    uniform,
    xavier_normal,
    xavier_uniform,
    zeros,
)
from ml.layers.linear import Linear, Projections
from ml.layers.linear_kernels import Float8, LinearKernel
from ml.layers.long_rotary import LongRotary
from ml.layers.lora import DoRA, LoRA
from ml.layers.loss import LossSums, Teacher, cross_entropy_sums
from ml.layers.mixers import (
    Attention,
    GatedDeltaNet,
    KimiDeltaAttention,
    LatentAttention,
    LightningAttention,
    Mamba,
    Mamba2,
    ParallelMixer,
    ShortConvolutionMixer,
    StochasticMixer,
)
from ml.layers.mlp import MLP, GatedMLP
from ml.layers.moe import MixtureOfExperts
from ml.layers.normalization import FixedRMSNorm, GatedRMSNorm, LayerNorm, NoNorm, RMSNorm
from ml.layers.parameter import Parameter
from ml.layers.protocol import Adapter, Balanced, Buffered, Drawn, Layer, Mixer, NoProducts, Stack
from ml.layers.recurrences import ChunkedRecurrence, FlashLinearAttention, MambaSSM, ReferenceRecurrence
from ml.layers.rotary import (
    DynamicRotary,
    LinearRotary,
    Llama3Rotary,
    Rotary,
    RotaryEmbedding,
    TwoDimensionalRotary,
    YarnRotary,
)
from ml.layers.routing import SigmoidRouter, SoftmaxRouter
from ml.layers.vision import PatchEmbedding, Projector

__all__ = [
    "MLP",
    "Adapter",
    "Attention",
    "AttentionKernel",
    "AutomaticAttention",
    "Auxiliary",
    "Balanced",
    "BlockwiseAttention",
    "Buffered",
    "Cache",
    "CausalConvolution",
    "ChunkedRecurrence",
    "Context",
    "DoRA",
    "DotProductAttention",
    "Drawn",
    "DynamicRotary",
    "Embeddings",
    "FixedRMSNorm",
    "FlashLinearAttention",
    "FlexAttention",
    "Float8",
    "GatedDeltaNet",
    "GatedMLP",
    "GatedRMSNorm",
    "KimiDeltaAttention",
    "LanguageModelHead",
    "LatentAttention",
    "Layer",
    "LayerNorm",
    "LightningAttention",
    "Linear",
    "LinearKernel",
    "LinearRotary",
    "Llama3Rotary",
    "LoRA",
    "LongRotary",
    "LossSums",
    "Mamba",
    "Mamba2",
    "MambaSSM",
    "Mixer",
    "MixtureOfExperts",
    "NoNorm",
    "NoProducts",
    "ParallelMixer",
    "Parameter",
    "PatchEmbedding",
    "PositionEmbedding",
    "Projections",
    "Projector",
    "RMSNorm",
    "ReferenceAttention",
    "ReferenceRecurrence",
    "Rotary",
    "RotaryEmbedding",
    "ShortConvolutionMixer",
    "SigmoidRouter",
    "SoftmaxRouter",
    "Stack",
    "StochasticMixer",
    "Teacher",
    "TokenEmbedding",
    "TwoDimensionalRotary",
    "VariableLengthAttention",
    "YarnRotary",
    "attention_reference",
    "constant",
    "cross_entropy_sums",
    "fan_in_uniform",
    "gelu",
    "kaiming_normal",
    "kaiming_uniform",
    "normal",
    "ones",
    "relu",
    "relu_squared",
    "scaled_normal",
    "sigmoid",
    "silu",
    "tanh",
    "truncated_normal",
    "uniform",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]
