"""Rows of mixtures of experts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ml.blocks import DecoderBlock
from ml.config import ImportedValue
from ml.interop.common import ACTIVATIONS, width
from ml.interop.fields import ConfigFields, Derived, Field, Part, Row, Set, View, key_of
from ml.interop.tensors import TensorRow, linear_rows, row
from ml.layers import GatedMLP, SigmoidRouter, SoftmaxRouter
from ml.layers.moe import MixtureOfExperts


def mixture(
    count: str = "num_experts", *aliases: str, experts_per_token: Any, experts: Any = ..., scope: str = ""
) -> tuple[Row, ...]:
    """A mixture of experts in the blocks of a scope.

    Args:
        count: The field with the number of experts.
        aliases: Other names of that field.
        experts_per_token: The value of an absent `num_experts_per_tok`; with `...` the field is required.
        experts: The value of an absent number of experts; without it the field is required.
        scope: The scope of the bindings.
    """
    return (
        Set(DecoderBlock, "mlp", MixtureOfExperts, scope),
        Set(MixtureOfExperts, "router", SoftmaxRouter, scope),
        Field(count, MixtureOfExperts, "num_experts", aliases=aliases, scope=scope, **_default(experts)),
        Field("num_experts_per_tok", MixtureOfExperts, "experts_per_token", scope=scope, **_default(experts_per_token)),
    )


def _default(value: Any) -> dict[str, Any]:
    """Returns the argument for the value of an absent field, none for a required one."""
    return {} if value is ... else {"default": value}


def narrow_experts(
    *names: str, chosen: int = 8, count: int = 128, normalized: bool = False, scope: str = ""
) -> tuple[Row, ...]:
    """A mixture of experts with another width than that of dense blocks, `moe_intermediate_size` (Qwen).

    Args:
        names: The field with the number of experts, and its other names.
        chosen: The value of an absent `num_experts_per_tok`.
        count: The value of an absent number of experts.
        normalized: The value of an absent `norm_topk_prob`.
        scope: The scope of the bindings.
    """
    return (
        *mixture(*names, experts_per_token=chosen, experts=count, scope=scope),
        width("moe_intermediate_size", "/".join(filter(None, (scope, "experts")))),
        Field("norm_topk_prob", SoftmaxRouter, "normalize", default=normalized, scope=scope),
        Part("hidden_act", GatedMLP, "activation", ACTIVATIONS, "silu"),
    )


def sigmoid_mixture(
    name: str,
    *aliases: str,
    count: int,
    chosen: int,
    scope: str = "",
    per_token: tuple[str, ...] = ("num_experts_per_tok",),
) -> tuple[Row, ...]:
    """A mixture of experts with a router of sigmoids in the blocks of a scope.

    Args:
        name: The field with the number of experts.
        aliases: Other names of that field.
        count: The value of an absent number of experts.
        chosen: The value of an absent number of experts for a token.
        scope: The scope of the bindings.
        per_token: The field with the number of experts for a token, and its other names.
    """
    return (
        Set(DecoderBlock, "mlp", MixtureOfExperts, scope),
        Set(MixtureOfExperts, "router", SigmoidRouter, scope),
        Field(name, MixtureOfExperts, "num_experts", default=count, scope=scope, aliases=aliases),
        Field(per_token[0], MixtureOfExperts, "experts_per_token", default=chosen, scope=scope, aliases=per_token[1:]),
    )


def shared_experts(
    scope: str = "", *, absent_width: Any = ..., count: int = 1, names: tuple[str, ...] = ("n_shared_experts",)
) -> tuple[Row, ...]:
    """Widths of the experts, and shared ones that are stored as one as wide as all of them (DeepSeek).

    Args:
        scope: The scope of the bindings.
        absent_width: The value of an absent `moe_intermediate_size`; without it the field is required.
        count: The value of an absent number of shared experts.
        names: The field with that number, and its other names.
    """

    def width_of(name: str, view: View) -> int | None:
        mlp = view.first(GatedMLP, name)
        return None if mlp is None else mlp.gate.out_features

    def count_of(view: View) -> int | None:
        shared, one = width_of("shared_expert", view), width_of("experts", view)
        return None if shared is None or one is None else shared // one

    def total(fields: ConfigFields) -> int:
        one = fields.number("moe_intermediate_size", **_default(absent_width))
        found = [name for name in names if name in fields.content]
        return one * fields.number(found[0] if found else names[0], count)

    inside, shared = ("/".join(filter(None, (scope, name))) for name in ("experts", "shared_expert"))
    return (
        Field(
            "moe_intermediate_size",
            GatedMLP,
            "intermediate_size",
            scope=inside,
            read=lambda view: width_of("experts", view),
            **_default(absent_width),
        ),
        Derived(GatedMLP, "intermediate_size", total, names[0], shared),
        Field(
            names[0],
            MixtureOfExperts,
            "shared_expert",
            default=count,
            scope=scope,
            to=lambda count: GatedMLP,
            read=count_of,
            aliases=names[1:],
        ),
        Part("hidden_act", GatedMLP, "activation", ACTIVATIONS, "silu"),
    )


@dataclass(frozen=True)
class RouterLoss(Row):
    """The load balancing loss, which transformers computes only where `output_router_logits` is true."""

    names = ("output_router_logits", "router_aux_loss_coef")

    def imported(self, fields: ConfigFields) -> Iterator[ImportedValue]:
        coefficient = fields.get("router_aux_loss_coef", 0.001)
        is_used = fields.get("output_router_logits", False)
        if not is_used:
            fields.idle.add("router_aux_loss_coef")
        field = "router_aux_loss_coef" if is_used else "output_router_logits"
        yield fields.value(key_of(SoftmaxRouter, "auxiliary_loss"), coefficient if is_used else 0.0, field)

    def exported(self, view: View) -> dict[str, Any]:
        router = view.first(SoftmaxRouter)
        if router is None:
            return {}
        if not router.auxiliary_loss:
            return {"output_router_logits": False}
        return {"output_router_logits": True, "router_aux_loss_coef": router.auxiliary_loss}


def expert_rows(name: str = "model.layers.{i}.mlp") -> tuple[TensorRow, ...]:
    """Tensors of a router and of experts that are gated MLPs."""
    experts = {
        f"{name}.experts.{{e}}.{part}_proj": f"{{block}}.mlp.experts.expert_{{e}}.{part}"
        for part in ("gate", "up", "down")
    }
    return (row(f"{name}.gate.weight", "{block}.mlp.router.weight"), *linear_rows(experts, ("weight",)))


SHARED_EXPERTS = linear_rows(
    {
        f"model.layers.{{i}}.mlp.shared_experts.{name}_proj": f"{{block}}.mlp.shared_expert.{name}"
        for name in ("gate", "up", "down")
    },
    ("weight",),
)
