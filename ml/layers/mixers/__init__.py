"""Mixers: layers that move information between the tokens of a sequence."""

from ml.layers.mixers.attention import Attention
from ml.layers.mixers.attention_reference import attention_reference
from ml.layers.mixers.latent_attention import LatentAttention
from ml.layers.mixers.stochastic_mixer import StochasticMixer

__all__ = ["Attention", "LatentAttention", "StochasticMixer", "attention_reference"]
