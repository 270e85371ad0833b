"""Mixers: layers that move information between the tokens of a sequence."""

from ml.layers.mixers.attention import Attention
from ml.layers.mixers.gated_delta_net import GatedDeltaNet
from ml.layers.mixers.kimi_delta_attention import KimiDeltaAttention
from ml.layers.mixers.latent_attention import LatentAttention
from ml.layers.mixers.lightning_attention import LightningAttention
from ml.layers.mixers.mamba import Mamba
from ml.layers.mixers.mamba2 import Mamba2
from ml.layers.mixers.parallel_mixer import ParallelMixer
from ml.layers.mixers.short_convolution import ShortConvolutionMixer
from ml.layers.mixers.stochastic_mixer import StochasticMixer

__all__ = [
    "Attention",
    "GatedDeltaNet",
    "KimiDeltaAttention",
    "LatentAttention",
    "LightningAttention",
    "Mamba",
    "Mamba2",
    "ParallelMixer",
    "ShortConvolutionMixer",
    "StochasticMixer",
]
