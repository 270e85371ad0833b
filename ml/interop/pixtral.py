"""Rows of the vision tower of Pixtral."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ml.blocks import DecoderBlock, Repeat
from ml.config import ImportedValue
from ml.interop.common import ACTIVATIONS, QUERY_KEY_VALUE, width
from ml.interop.errors import InteropError
from ml.interop.fields import ConfigFields, Derived, Field, Part, Row, Set, View, key_of, within
from ml.interop.tensors import Reshaped, TensorRow, row, rows_within
from ml.layers import Attention, GatedMLP, Linear, RMSNorm, TwoDimensionalRotary
from ml.layers.vision import PatchEmbedding
from ml.models import VisionEncoder

_ATTENTION = {f"attention.{name[0]}_proj.weight": f"mixer.{name}.weight" for name in (*QUERY_KEY_VALUE, "output")}
_MLP = {f"feed_forward.{name}_proj.weight": f"mlp.{name}.weight" for name in ("gate", "up", "down")}
_NORMS = {"attention_norm.weight": "mixer_norm.weight", "ffn_norm.weight": "mlp_norm.weight"}


@dataclass(frozen=True)
class _Theta(Row):
    """The base of the rotary embedding of rows and columns."""

    scope: str

    names = ("rope_theta", "rope_parameters")

    def imported(self, fields: ConfigFields) -> Iterator[ImportedValue]:
        inside = fields.get("rope_parameters", None) or {}
        if inside.get("rope_type", "axial") not in ("axial", "default"):
            raise InteropError(f"config.json#rope_parameters.rope_type is {inside['rope_type']!r}, not 'axial'")
        theta = inside.get("rope_theta", fields.get("rope_theta", 10_000.0))
        yield fields.value(key_of(TwoDimensionalRotary, "theta", self.scope), theta, "rope_parameters.rope_theta")

    def exported(self, view: View) -> dict[str, Any]:
        rotary = view.first(TwoDimensionalRotary, self.scope)
        return {} if rotary is None else {"rope_parameters": {"rope_type": "axial", "rope_theta": rotary.theta}}


def _num_heads(fields: ConfigFields) -> int:
    return fields.number("num_attention_heads", 16)


def _head_size(fields: ConfigFields) -> int:
    return fields.number("hidden_size", 1024) // _num_heads(fields)


def _num_blocks(view: View) -> int:
    return len(view.first(Repeat).blocks)


def _square(view: View) -> int:
    height, width = view.first(PatchEmbedding).image_size
    if height != width:
        raise InteropError(f"PatchEmbedding.image_size is {height} x {width}, and the format has squares")
    return height


def pixtral(scope: str) -> tuple[Row, ...]:
    """The vision encoder.

    Args:
        scope: The scope of the bindings.
    """
    linear = ("projection", *QUERY_KEY_VALUE, "output", "gate", "up", "down")
    return (
        Field("hidden_size", VisionEncoder, "hidden_size", default=1024),
        Set(VisionEncoder, "normalization", None),
        Field("image_size", PatchEmbedding, "image_size", default=1024, to=lambda side: (side, side), read=_square),
        Field("patch_size", PatchEmbedding, "patch_size", default=16),
        Field("num_channels", PatchEmbedding, "num_channels", default=3),
        Set(PatchEmbedding, "position", None),
        Set(PatchEmbedding, "normalization", RMSNorm),
        Field("num_hidden_layers", Repeat, "num_blocks", default=24, scope=scope, read=_num_blocks),
        *(Set(Repeat, name, value, scope) for name, value in {"block": DecoderBlock, "shared": False}.items()),
        *(Set(DecoderBlock, name, value, scope) for name, value in
          {"mixer": Attention, "mlp": GatedMLP, "normalization": RMSNorm}.items()),
        Field("num_attention_heads", Attention, "num_heads", default=16, scope=scope),
        Derived(Attention, "num_kv_heads", _num_heads, "num_attention_heads", scope),
        Derived(Attention, "head_size", _head_size, "hidden_size", scope),
        Field("attention_dropout", Attention, "dropout", default=0.0, scope=scope),
        *(Set(Attention, name, value, scope) for name, value in
          {"causal": False, "rotary": TwoDimensionalRotary, "window_size": None}.items()),
        _Theta(scope),
        Set(RMSNorm, "epsilon", 1e-5, scope),
        Set(RMSNorm, "zero_centered", False, scope),
        width(scope=scope, default=4096),
        Part("hidden_act", GatedMLP, "activation", ACTIVATIONS, "gelu", scope),
        *(Set(Linear, "bias", False, within(scope, name)) for name in linear),
    )  # fmt: skip


def pixtral_tensors(stored: str, config: Mapping[str, Any]) -> tuple[TensorRow, ...]:
    """Tensors of the vision encoder.

    Args:
        stored: Their path in the checkpoint.
        config: The fields of the vision tower.
    """
    side = config.get("patch_size", 16)
    patches = Reshaped((-1, config.get("num_channels", 3), side, side))
    return (
        row(f"{stored}.ln_pre.weight", "vision.patches.norm.weight"),
        row(f"{stored}.patch_conv.weight", "vision.patches.projection.weight", layout=patches),
        *(
            one
            for index in range(config.get("num_hidden_layers", 24))
            for one in rows_within(
                f"{stored}.transformer.layers.{index}", f"vision.encoder.block_{index}", _ATTENTION | _MLP | _NORMS
            )
        ),
    )
