"""Mamba-2: state-space duality without an MLP."""

import math

from ml.interop.family import Family
from ml.interop.fields import Bias, Field
from ml.interop.mixers import PARTS_OF_MAMBA_2, limits
from ml.interop.state_spaces import KEPT_OF_STATE_SPACES, STATE_SPACE_TENSORS, STORED_MIXER, state_space
from ml.interop.tensors import Concatenated, row
from ml.layers import GatedRMSNorm, Linear, Mamba2

MAMBA_2 = Family(
    "Mamba-2",
    {"mamba2": "Mamba2ForCausalLM"},
    (
        *state_space(Mamba2, tied=False),
        Field("num_heads", Mamba2, "num_heads", default=128),
        Field("head_dim", Mamba2, "head_size", default=64),
        Field("n_groups", Mamba2, "num_groups", default=8),
        Field("chunk_size", Mamba2, "chunk_size", default=256),
        Field("time_step_limit", Mamba2, "dt_limit", default=(0.0, math.inf), to=limits, back=list),
        Field("layer_norm_epsilon", GatedRMSNorm, "epsilon", default=1e-5),
        Bias((*PARTS_OF_MAMBA_2, "output"), Linear, Mamba2, "use_bias", False),
    ),
    (
        *STATE_SPACE_TENSORS,
        *(
            row(
                f"{STORED_MIXER}.in_proj.{kind}",
                *(f"{{block}}.mixer.{name}.{kind}" for name in PARTS_OF_MAMBA_2),
                layout=Concatenated(),
            )
            for kind in ("weight", "bias")
        ),
        row(f"{STORED_MIXER}.norm.weight", "{block}.mixer.norm.weight"),
        row(f"{STORED_MIXER}.dt_bias", "{block}.mixer.dt_bias"),
    ),
    KEPT_OF_STATE_SPACES | {"time_step_rank", "rms_norm"},
)

FAMILIES = (MAMBA_2,)
