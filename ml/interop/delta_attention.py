"""Rows of Kimi delta attention."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ml.blocks import DecoderBlock
from ml.config import ImportedValue
from ml.interop.common import ACTIVATIONS
from ml.interop.errors import InteropError
from ml.interop.fields import Bias, ConfigFields, Field, Part, Row, Set, View, key_of, within
from ml.interop.hybrids import LINEAR, mixers
from ml.interop.kinds import FULL
from ml.interop.tensors import Reshaped, Share, TensorRow, row, rows_within
from ml.layers import CausalConvolution, GatedRMSNorm, KimiDeltaAttention, Linear

INSIDE = "linear_attn_config"
MIXERS = {LINEAR: "delta", FULL: "latent"}
_LISTS = ("full_attn_layers", "kda_layers")
_IN_DELTA = "{block}.mixer.A_log"
# The field of transformers, that within `linear_attn_config` of released checkpoints, and the default.
_SIZES: dict[str, tuple[str, type, str, int]] = {
    "linear_num_heads": ("num_heads", KimiDeltaAttention, "num_heads", 32),
    "linear_head_dim": ("head_dim", KimiDeltaAttention, "key_head_size", 128),
    "linear_conv_kernel_dim": ("short_conv_kernel_size", CausalConvolution, "kernel_size", 4),
}
_NAMES = {
    "q_proj.weight": "query.weight", "k_proj.weight": "key.weight", "v_proj.weight": "value.weight",
    "b_proj.weight": "beta.weight", "f_a_proj.weight": "decay_down.weight", "f_b_proj.weight": "decay_up.weight",
    "g_a_proj.weight": "gate_down.weight", "g_b_proj.weight": "gate_up.weight", "o_norm.weight": "norm.weight",
    "o_proj.weight": "output.weight", "dt_bias": "dt_bias",
}  # fmt: skip


def inner(fields: ConfigFields) -> dict[str, Any]:
    """Returns the fields within `linear_attn_config`, none without it."""
    found = fields.get(INSIDE, None) or {}
    if not isinstance(found, dict):
        raise InteropError(f"config.json#{INSIDE} must be an object, not {found!r}")
    return found


def delta_or_latent(fields: ConfigFields) -> list[str]:
    """Returns "delta" or "latent" for each block: by `layer_types`, else by the lists of released checkpoints.

    Raises:
        InteropError: The lists, which count from 1, do not have each block once.
    """
    count, lists = fields.number("num_hidden_layers"), inner(fields)
    latent, delta = (lists.get(name) for name in _LISTS)
    if fields.get("layer_types", None) is not None or latent is None or delta is None:
        fields.idle |= {f"{INSIDE}.{name}" for name in _LISTS}
        return mixers(fields, lambda index: FULL if index and index % 4 == 0 else LINEAR, MIXERS)
    are_lists = isinstance(latent, list) and isinstance(delta, list)
    if not are_lists or sorted(map(str, latent + delta)) != sorted(map(str, range(1, count + 1))):
        raise InteropError(f"config.json#{INSIDE}: {' and '.join(_LISTS)} must have each of 1 to {count} once")
    return ["latent" if index + 1 in latent else "delta" for index in range(count)]


@dataclass(frozen=True)
class _Sizes(Row):
    """Number and size of the heads and the taps of the convolution, in either spelling."""

    scope: str = ""

    names = (*_SIZES, INSIDE)

    def imported(self, fields: ConfigFields) -> Iterator[ImportedValue]:
        found = inner(fields)
        for name, (short, configurable, parameter, default) in _SIZES.items():
            value, source = fields.get(name, default), name
            if short in found:
                value, source = found[short], f"{INSIDE}.{short}"
                fields.idle.add(name)
            yield fields.value(key_of(configurable, parameter, self.scope), value, source)

    def exported(self, view: View) -> dict[str, Any]:
        modules = {name: view.first(kind, self.scope) for name, (_, kind, _, _) in _SIZES.items()}
        found = {name: module for name, module in modules.items() if module is not None}
        return {name: getattr(module, _SIZES[name][2]) for name, module in found.items()}


def delta_attention(scope: str) -> tuple[Row, ...]:
    """Kimi delta attention in the blocks of a scope.

    Args:
        scope: The scope of the bindings.
    """
    return (
        Set(DecoderBlock, "mixer", KimiDeltaAttention, scope),
        _Sizes(scope),
        Set(CausalConvolution, "bias", False, scope),
        Part("hidden_act", CausalConvolution, "activation", ACTIVATIONS, "silu", scope),
        Field("rms_norm_eps", GatedRMSNorm, "epsilon", default=1e-5, scope=scope),
        Bias(
            ("query", "key", "value", "beta", "gate_up", "output"),
            Linear,
            KimiDeltaAttention,
            None,
            False,
            within(scope, "mixer"),
        ),
    )


def delta_attention_tensors(stored: str) -> tuple[TensorRow, ...]:
    """Tensors of Kimi delta attention.

    Args:
        stored: Their path in the checkpoint.
    """
    return (
        *rows_within(stored, "{block}.mixer", _NAMES, _IN_DELTA),
        row(f"{stored}.A_log", _IN_DELTA, layout=Reshaped((1, 1, -1, 1))),
        *(
            row(
                f"{stored}.{name}_conv1d.weight",
                "{block}.mixer.convolution.weight",
                layout=Share(index, 3),
                needs=_IN_DELTA,
            )
            for index, name in enumerate("qkv")
        ),
    )
