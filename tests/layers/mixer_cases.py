"""Every mixer with small sizes and the options that affect its use of previous tokens."""

from functools import partial

from ml.config.configurable import candidates, known_names
from ml.layers import (
    Attention,
    GatedDeltaNet,
    KimiDeltaAttention,
    LatentAttention,
    LayerNorm,
    LightningAttention,
    Linear,
    LoRA,
    Mamba,
    Mamba2,
    ParallelMixer,
    RMSNorm,
    Rotary,
    ShortConvolutionMixer,
    StochasticMixer,
    YarnRotary,
)

ATTENTION = partial(Attention, num_heads=4, num_kv_heads=2)
LATENT = partial(LatentAttention, num_heads=3, key_value_rank=7, head_size=5, rotary_size=4, value_head_size=6)
DELTA = {"num_heads": 2, "key_head_size": 6, "value_head_size": 5, "chunk_size": 4}
MIXERS = {
    "attention": ATTENTION,
    "attention without positions": partial(ATTENTION, rotary=None),
    "attention in a window": partial(ATTENTION, window_size=5),
    "attention to itself": partial(ATTENTION, window_size=1),
    "attention with a cap and sinks": partial(ATTENTION, soft_cap=1.5, attention_sinks=True),
    "attention with a cap and sinks in a window": partial(ATTENTION, soft_cap=1.5, attention_sinks=True, window_size=4),
    "gated attention with norms": partial(ATTENTION, gated=True, query_norm=RMSNorm, key_norm=RMSNorm),
    "attention with norms over all heads": partial(
        ATTENTION, query_norm=RMSNorm, key_norm=RMSNorm, norm_over="all_heads", norm_after_rotary=True
    ),
    "attention with other value heads and norms of each head": partial(
        ATTENTION, query_norm=RMSNorm, key_norm=LayerNorm, norm_over="each_head", value_head_size=6
    ),
    "attention with ALiBi": partial(ATTENTION, alibi=True, rotary=None, window_size=7),
    "attention with ALiBi of Falcon": partial(ATTENTION, alibi=True, scale_alibi=True, rotary=None),
    "attention, YaRN": partial(ATTENTION, rotary=partial(YarnRotary, original_length=8)),
    "attention, part of the head": partial(ATTENTION, rotary=partial(Rotary, fraction=0.5, interleaved=True)),
    "latent attention": LATENT,
    "latent attention in a window": partial(LATENT, window_size=4, query_rank=9),
    "latent attention with adapters": partial(LATENT, linear=partial(Linear, apply_peft=LoRA)),
    "Mamba": partial(Mamba, state_size=4),
    "Mamba-2": partial(Mamba2, head_size=8, state_size=5, num_groups=2, chunk_size=4),
    "gated delta net": partial(GatedDeltaNet, **DELTA, num_value_heads=4),
    "Kimi delta attention": partial(KimiDeltaAttention, **DELTA),
    "lightning attention": partial(LightningAttention, num_heads=2, head_size=6, chunk_size=4),
    "parallel": partial(
        ParallelMixer,
        mixers={"full": ATTENTION, "ssm": partial(Mamba2, head_size=8, state_size=5, chunk_size=4)},
        input_scales={"full": 2.0, "ssm": 1.0},
    ),
    "short convolution": ShortConvolutionMixer,
    "stochastic": partial(StochasticMixer, mixers={"full": ATTENTION, "short": ShortConvolutionMixer}, main="short"),
}


def classes_of_mixers() -> set[type]:
    """Returns every configurable layer of `ml.layers.mixers`."""
    infos = [info for name in known_names() for info in candidates(name)]
    mixers = [info.target for info in infos if info.selector.startswith("ml.layers.mixers.")]
    return {target for target in mixers if isinstance(target, type)}
