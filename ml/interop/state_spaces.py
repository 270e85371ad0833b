"""Rows that Mamba and Mamba-2 share."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ml.blocks import DecoderBlock
from ml.config import ImportedValue
from ml.interop.common import ACTIVATIONS, repeated, rms_norm, sizes
from ml.interop.errors import InteropError
from ml.interop.fields import ConfigFields, Field, Part, Row, Set, View, key_of
from ml.interop.tensors import TensorRow, linear_rows, row
from ml.layers import CausalConvolution, Mamba, Mamba2

STORED_MIXER = "backbone.layers.{i}.mixer"
KEPT_OF_STATE_SPACES = frozenset(
    (
        "time_step_scale", "time_step_min", "time_step_max", "time_step_floor", "time_step_init_scheme",
        "rescale_prenorm_residual", "residual_in_fp32", "use_mambapy", "use_falcon_mambapy", "use_associative_scan",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Expansion(Row):
    """The width of the mixer as a multiple of the width of the model; `intermediate_size` is computed from it."""

    names = ("expand", "intermediate_size")

    def imported(self, fields: ConfigFields) -> Iterator[ImportedValue]:
        fields.get("intermediate_size", None)
        fields.idle.add("intermediate_size")
        expand = fields.get("expand", 2)
        if isinstance(expand, bool) or not isinstance(expand, int | float):
            raise InteropError(f"config.json#expand must be a number, not {expand!r}")
        size = int(expand * fields.number("hidden_size"))
        if fields.content.get("model_type") == "mamba2":
            heads = fields.number("num_heads", 128), fields.number("head_dim", 64)
            if math.prod(heads) != size:
                raise InteropError(f"config.json#expand makes {size} channels, and num_heads · head_dim {heads}")
            return
        yield fields.value(key_of(Mamba, "intermediate_size"), size, "expand")

    def exported(self, view: View) -> dict[str, Any]:
        mixer = view.first(Mamba) or view.first(Mamba2)
        if mixer is None:
            return {}
        size = mixer.output.in_features
        exact = size / view.model.hidden_size
        return {"expand": int(exact) if exact == int(exact) else exact}


def rank_of_steps(fields: ConfigFields) -> int:
    """Returns the rank of the projection of the step where a config.json has none."""
    return -(-fields.number("hidden_size") // 16)


def state_space(mixer: type, tied: bool) -> tuple[Row, ...]:
    """Blocks of a state-space mixer alone.

    Args:
        mixer: `Mamba` or `Mamba2`.
        tied: The value of an absent `tie_word_embeddings`.
    """
    return (
        *sizes(tied),
        *repeated(),
        Set(DecoderBlock, "mixer", mixer),
        Set(DecoderBlock, "mlp", None),
        *rms_norm(1e-5, "layer_norm_epsilon"),
        Field("state_size", mixer, "state_size", default=16 if mixer is Mamba else 128),
        Expansion(),
        Field("conv_kernel", CausalConvolution, "kernel_size", default=4),
        Field(
            "use_conv_bias",
            CausalConvolution,
            "bias",
            default=True,
            read=lambda view: view.first(CausalConvolution).bias is not None,
        ),
        Part("hidden_act", CausalConvolution, "activation", ACTIVATIONS, "silu"),
    )


STATE_SPACE_TENSORS: tuple[TensorRow, ...] = (
    row("backbone.embeddings.weight", "embeddings.token.weight"),
    row("backbone.norm_f.weight", "head.norm.weight"),
    row("lm_head.weight", "head.weight"),
    row("backbone.layers.{i}.norm.weight", "{block}.mixer_norm.weight"),
    *linear_rows(
        {f"{STORED_MIXER}.conv1d": "{block}.mixer.convolution", f"{STORED_MIXER}.out_proj": "{block}.mixer.output"}
    ),
    row(f"{STORED_MIXER}.A_log", "{block}.mixer.A_log"),
    row(f"{STORED_MIXER}.D", "{block}.mixer.D"),
)
