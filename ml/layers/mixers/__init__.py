"""Mixers: layers that move information between the tokens of a sequence."""

from ml.layers.mixers.attention import Attention
from ml.layers.mixers.attention_reference import attention_reference

__all__ = ["Attention", "attention_reference"]
