"""Kernels of softmax attention, of which a mixer takes one: `Attention.kernel = @FlexAttention`."""

from ml.layers.attention_kernels.automatic import AutomaticAttention
from ml.layers.attention_kernels.blockwise import BlockwiseAttention
from ml.layers.attention_kernels.dot_product import DotProductAttention
from ml.layers.attention_kernels.flex import FlexAttention
from ml.layers.attention_kernels.kernel import AttentionKernel, AttentionTask, Features, Weighting, task_of
from ml.layers.attention_kernels.reference import ReferenceAttention, attention_reference
from ml.layers.attention_kernels.variable_length import VariableLengthAttention
from ml.layers.attention_kernels.visibility import mean_visible_keys

__all__ = [
    "AttentionKernel",
    "AttentionTask",
    "AutomaticAttention",
    "BlockwiseAttention",
    "DotProductAttention",
    "Features",
    "FlexAttention",
    "ReferenceAttention",
    "VariableLengthAttention",
    "Weighting",
    "attention_reference",
    "mean_visible_keys",
    "task_of",
]
