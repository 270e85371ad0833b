"""Rows of the mixers of hybrids: attention, Mamba and Mamba-2 in blocks of some kinds."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ml.blocks import DecoderBlock
from ml.config import ImportedValue
from ml.interop.common import ACTIVATIONS
from ml.interop.errors import InteropError
from ml.interop.fields import Bias, ConfigFields, Field, Part, Row, Set, View, key_of, within
from ml.interop.rotary import Rope
from ml.interop.state_spaces import rank_of_steps
from ml.interop.tensors import Concatenated, TensorRow, row, rows_within
from ml.layers import Attention, CausalConvolution, GatedRMSNorm, Linear, Mamba, Mamba2, RMSNorm

PARTS_OF_MAMBA_2 = ("gate", "x", "B", "C", "dt")
_IN_STATE_SPACE = "{block}.mixer.A_log"
_MAMBA = {
    "conv1d.": "convolution.", "out_proj.": "output.", "A_log": "A_log", "D": "D", "dt_proj.weight": "dt.weight",
    "dt_proj.bias": "dt_bias", "dt_layernorm.weight": "dt_norm.weight", "b_layernorm.weight": "B_norm.weight",
    "c_layernorm.weight": "C_norm.weight",
}  # fmt: skip
_MAMBA_2 = {
    "conv1d.": "convolution.", "out_proj.": "output.", "A_log": "A_log", "D": "D", "dt_bias": "dt_bias",
    "norm.weight": "norm.weight",
}  # fmt: skip


def limits(value: Any) -> tuple[float, float]:
    """Returns the least and the greatest time step, of which the greatest may be spelled as an object."""
    low, high = (float(one["__float__"] if isinstance(one, dict) else one) for one in value)
    return low, high


@dataclass(frozen=True)
class Positions(Row):
    """A rotary embedding, where `position_embedding_type` is "rope"."""

    rope: Rope

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("position_embedding_type", *self.rope.names)

    def imported(self, fields: ConfigFields) -> Iterator[ImportedValue]:
        kind = fields.get("position_embedding_type", None)
        if kind not in ("rope", "nope", None):
            raise InteropError(
                f"config.json#position_embedding_type is {kind!r}, and there is only rope, nope and null"
            )
        if kind == "rope":
            yield from self.rope.imported(fields)
            return
        fields.read.update(self.rope.names)
        fields.idle.update(self.rope.names)
        yield fields.value(key_of(Attention, "rotary", self.rope.scope), None, "position_embedding_type")

    def exported(self, view: View) -> dict[str, Any]:
        mixer = view.first(Attention)
        if mixer is None or mixer.rotary is None:
            return {"position_embedding_type": None}
        return {"position_embedding_type": "rope", **self.rope.exported(view)}


@dataclass(frozen=True)
class Heads(Row):
    """The heads of Mamba-2, which have `mamba_expand` times as many channels as the model is wide.

    Args:
        scope: The scope of the bindings.
        size: The field of the number of channels, before which `mamba_expand` does not matter; empty without one.
        channels: The value of that field where it is absent.
    """

    scope: str = ""
    size: str = ""
    channels: int = 1024

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(filter(None, ("mamba_n_heads", "mamba_d_head", "mamba_expand", self.size)))

    def imported(self, fields: ConfigFields) -> Iterator[ImportedValue]:
        count = fields.number("mamba_n_heads", 128)
        channels = fields.number("mamba_expand", 2) * fields.number("hidden_size")
        if self.size and fields.get(self.size, self.channels) is not None:
            channels = fields.number(self.size, self.channels)
            fields.idle.add("mamba_expand")
        is_given = fields.get("mamba_d_head", "auto") != "auto"
        size = fields.number("mamba_d_head") if is_given else channels // count
        if count * size != channels:
            raise InteropError(
                f"config.json#{self.size or 'mamba_expand'} makes {channels} channels, and mamba_n_heads · "
                f"mamba_d_head {count * size}"
            )
        yield fields.value(key_of(Mamba2, "num_heads", self.scope), count, "mamba_n_heads")
        yield fields.value(key_of(Mamba2, "head_size", self.scope), size, "mamba_d_head")

    def exported(self, view: View) -> dict[str, Any]:
        mixer, width = view.first(Mamba2, self.scope), view.model.hidden_size
        if mixer is None:
            return {}
        channels = mixer.num_heads * mixer.head_size
        if self.size:
            return {"mamba_n_heads": mixer.num_heads, "mamba_d_head": mixer.head_size, self.size: channels}
        if channels % width:
            raise InteropError(f"Mamba2 has {channels} channels, and the format has a multiple of hidden_size, {width}")
        return {
            "mamba_n_heads": mixer.num_heads, "mamba_d_head": mixer.head_size, "mamba_expand": channels // width,
        }  # fmt: skip


def mamba_2(scope: str, epsilon: float = 1e-5) -> tuple[Row, ...]:
    """Mamba-2 in the blocks of a scope, with the fields `mamba_...`.

    Args:
        scope: The scope of the bindings.
        epsilon: The value of an absent `rms_norm_eps`.
    """
    return (
        Set(DecoderBlock, "mixer", Mamba2, scope),
        Heads(scope),
        *mamba_2_sizes(scope),
        Field("rms_norm_eps", GatedRMSNorm, "epsilon", scope=scope, default=epsilon),
        Bias((*PARTS_OF_MAMBA_2, "output"), Linear, Mamba2, "mamba_proj_bias", False, within(scope, "mixer")),
    )


def mamba_2_sizes(scope: str) -> tuple[Row, ...]:
    """Groups, states, limits and the convolution of Mamba-2.

    Args:
        scope: The scope of the bindings.
    """
    return (
        Field("mamba_n_groups", Mamba2, "num_groups", default=1, scope=scope),
        Field("mamba_d_state", Mamba2, "state_size", default=256, scope=scope),
        Field("mamba_chunk_size", Mamba2, "chunk_size", default=256, scope=scope),
        Field("time_step_limit", Mamba2, "dt_limit", default=(0.0, math.inf), scope=scope, to=limits, back=list),
        *convolution("mamba_d_conv", "mamba_conv_bias", scope),
        Part("hidden_act", CausalConvolution, "activation", ACTIVATIONS, "silu", scope),
    )


def convolution(taps: str, bias: str, scope: str, *, size: int = 4, has_bias: bool = True) -> tuple[Row, ...]:
    """The convolution in the blocks of a scope.

    Args:
        taps: The field of the number of taps.
        bias: The field of the bias.
        scope: The scope of the bindings.
        size: The value of an absent number of taps.
        has_bias: The value of an absent bias.
    """

    def read(view: View) -> bool:
        return view.first(CausalConvolution, scope).bias is not None

    return (
        Field(taps, CausalConvolution, "kernel_size", default=size, scope=scope),
        Field(bias, CausalConvolution, "bias", default=has_bias, scope=scope, read=read),
    )


@dataclass(frozen=True)
class Channels(Row):
    """The channels of Mamba, `mamba_expand` times as many as the model is wide."""

    scope: str = ""

    names = ("mamba_expand",)

    def imported(self, fields: ConfigFields) -> Iterator[ImportedValue]:
        size = fields.number("mamba_expand", 2) * fields.number("hidden_size")
        yield fields.value(key_of(Mamba, "intermediate_size", self.scope), size, "mamba_expand")

    def exported(self, view: View) -> dict[str, Any]:
        mixer = view.first(Mamba, self.scope)
        return {} if mixer is None else {"mamba_expand": mixer.intermediate_size // view.model.hidden_size}


def mamba(scope: str) -> tuple[Row, ...]:
    """Mamba with normalized selection in the blocks of a scope, with the fields `mamba_...`."""
    return (
        Set(DecoderBlock, "mixer", Mamba, scope),
        Channels(scope),
        Field("mamba_d_state", Mamba, "state_size", default=16, scope=scope),
        Field(
            "mamba_dt_rank",
            Mamba,
            "dt_rank",
            default=rank_of_steps,
            scope=scope,
            to=lambda rank: None if rank == "auto" else rank,
        ),
        *(Set(Mamba, name, RMSNorm, scope) for name in ("dt_norm", "B_norm", "C_norm")),
        *convolution("mamba_d_conv", "mamba_conv_bias", scope),
        Part("hidden_act", CausalConvolution, "activation", ACTIVATIONS, "silu", scope),
        Part("hidden_act", Mamba, "activation", ACTIVATIONS, "silu", scope),
        Bias(("x", "gate", "output"), Linear, Mamba, "mamba_proj_bias", False, within(scope, "mixer")),
    )


def mamba_tensors(stored: str) -> tuple[TensorRow, ...]:
    """Tensors of Mamba.

    Args:
        stored: Their path in the checkpoint.
    """
    selection = (f"{{block}}.mixer.{name}.weight" for name in ("dt_down", "B", "C"))
    return (
        *joined_tensors(f"{stored}.in_proj", ("x", "gate"), _IN_STATE_SPACE),
        row(f"{stored}.x_proj.weight", *selection, layout=Concatenated(), needs=_IN_STATE_SPACE),
        *rows_within(stored, "{block}.mixer", _MAMBA, _IN_STATE_SPACE),
    )


def mamba_2_tensors(stored: str, ours: str = "{block}.mixer") -> tuple[TensorRow, ...]:
    """Tensors of Mamba-2.

    Args:
        stored: Their path in the checkpoint.
        ours: That in the model.
    """
    return (
        *joined_tensors(f"{stored}.in_proj", PARTS_OF_MAMBA_2, ours=ours),
        *rows_within(stored, ours, _MAMBA_2, f"{ours}.A_log"),
    )


def joined_tensors(
    stored: str, parts: Sequence[str], needs: str = "", ours: str = "{block}.mixer"
) -> tuple[TensorRow, ...]:
    """One projection of a checkpoint that is several of a mixer.

    Args:
        stored: Its path in the checkpoint.
        parts: The projections of the mixer.
        needs: The tensor without which the rows are about another kind of block.
        ours: The path of the mixer.
    """
    return tuple(
        row(
            f"{stored}.{kind}",
            *(f"{ours}.{part}.{kind}" for part in parts),
            layout=Concatenated(),
            needs=needs,
        )
        for kind in ("weight", "bias")
    )


def attention_tensors(stored: str, output: str = "o_proj", ours: str = "{block}.mixer") -> tuple[TensorRow, ...]:
    """Tensors of attention in blocks some of which have another mixer.

    Args:
        stored: Their path in the checkpoint.
        output: The name of the output projection.
        ours: Their path in the model.
    """
    names = {"q_proj.": "query.", "k_proj.": "key.", "v_proj.": "value.", f"{output}.": "output."}
    return rows_within(stored, ours, names, f"{ours}.query.weight")
