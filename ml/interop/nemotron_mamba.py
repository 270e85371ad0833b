"""Rows of Mamba-2 with the fields of Nemotron-H."""

import math
from dataclasses import dataclass
from typing import Any

from ml.blocks import DecoderBlock
from ml.config import ImportedValue
from ml.interop.common import ACTIVATIONS
from ml.interop.fields import Bias, ConfigFields, Field, Part, Row, Set, View, within
from ml.interop.mixers import PARTS_OF_MAMBA_2, convolution, limits
from ml.layers import CausalConvolution, GatedRMSNorm, Linear, Mamba2


@dataclass(frozen=True)
class ShortestStep(Row):
    """The least time step in the field where transformers reads it; not 0, of which it takes the logarithm."""

    def imported(self, fields: ConfigFields) -> tuple[ImportedValue, ...]:
        return ()

    def exported(self, view: View) -> dict[str, Any]:
        mixer = view.first(Mamba2)
        return {} if mixer is None else {"time_step_min": max(mixer.dt_limit[0], 1e-30)}


def mamba_2_of_nemotron(scope: str) -> tuple[Row, ...]:
    """Mamba-2 in the blocks of a scope, with the fields of Nemotron-H.

    Args:
        scope: The scope of the bindings.
    """
    inside = within(scope, "mixer")
    return (
        Set(DecoderBlock, "mixer", Mamba2, scope),
        Field("mamba_num_heads", Mamba2, "num_heads", default=128, scope=scope),
        Field("mamba_head_dim", Mamba2, "head_size", default=64, scope=scope),
        Field("ssm_state_size", Mamba2, "state_size", default=128, scope=scope),
        Field("n_groups", Mamba2, "num_groups", default=8, scope=scope, aliases=("mamba_n_groups",)),
        Field("chunk_size", Mamba2, "chunk_size", default=128, scope=scope, aliases=("mamba_chunk_size",)),
        Field(
            "time_step_limit",
            Mamba2,
            "dt_limit",
            default=(0.0, math.inf),
            scope=scope,
            to=limits,
            back=list,
            aliases=("mamba_dt_limit",),
        ),
        ShortestStep(),
        Field("layer_norm_epsilon", GatedRMSNorm, "epsilon", default=1e-5, scope=scope),
        *convolution("conv_kernel", "use_conv_bias", scope),
        Part("mamba_hidden_act", CausalConvolution, "activation", ACTIVATIONS, "silu", scope),
        Bias((*PARTS_OF_MAMBA_2, "output"), Linear, Mamba2, "use_bias", False, inside),
    )
