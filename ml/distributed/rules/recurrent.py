"""Rules of recurrent mixers."""

from ml.distributed.rules.rule import register_rule
from ml.distributed.rules.whole import AllPositions
from ml.layers.convolution import CausalConvolution
from ml.layers.mixers.gated_delta_net import GatedDeltaNet
from ml.layers.mixers.kimi_delta_attention import KimiDeltaAttention
from ml.layers.mixers.mamba import Mamba
from ml.layers.mixers.mamba2 import Mamba2
from ml.layers.mixers.short_convolution import ShortConvolutionMixer


class RecurrentRule(AllPositions):
    """A mixer that continues from the state after the previous positions."""

    context = "state"


class ShortConvolutionRule(AllPositions):
    """`ShortConvolutionMixer`, of which only the convolution mixes positions."""

    context = "children"


for kind in (CausalConvolution, Mamba, Mamba2, GatedDeltaNet, KimiDeltaAttention):
    register_rule(kind, RecurrentRule())
register_rule(ShortConvolutionMixer, ShortConvolutionRule())
