"""Rows of mixtures of experts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ml.blocks import DecoderBlock
from ml.config import ImportedValue
from ml.interop.fields import ConfigFields, Field, Row, Set, View, key_of
from ml.interop.tensors import TensorRow, linear_rows, row
from ml.layers import SigmoidRouter, SoftmaxRouter
from ml.layers.moe import MixtureOfExperts


def mixture(
    count: str = "num_experts", *aliases: str, experts_per_token: int, experts: Any = ..., scope: str = ""
) -> tuple[Row, ...]:
    """A mixture of experts in the blocks of a scope.

    Args:
        count: The field with the number of experts.
        aliases: Other names of that field.
        experts_per_token: The value of an absent `num_experts_per_tok`.
        experts: The value of an absent number of experts; without it the field is required.
        scope: The scope of the bindings.
    """
    options = {} if experts is ... else {"default": experts}
    return (
        Set(DecoderBlock, "mlp", MixtureOfExperts, scope),
        Set(MixtureOfExperts, "router", SoftmaxRouter, scope),
        Field(count, MixtureOfExperts, "num_experts", aliases=aliases, scope=scope, **options),
        Field("num_experts_per_tok", MixtureOfExperts, "experts_per_token", default=experts_per_token, scope=scope),
    )


def sigmoid_mixture(name: str, *, count: int, chosen: int, scope: str = "") -> tuple[Row, ...]:
    """A mixture of experts with a router of sigmoids in the blocks of a scope.

    Args:
        name: The field with the number of experts.
        count: The value of an absent number of experts.
        chosen: The value of an absent `num_experts_per_tok`.
        scope: The scope of the bindings.
    """
    return (
        Set(DecoderBlock, "mlp", MixtureOfExperts, scope),
        Set(MixtureOfExperts, "router", SigmoidRouter, scope),
        Field(name, MixtureOfExperts, "num_experts", default=count, scope=scope),
        Field("num_experts_per_tok", MixtureOfExperts, "experts_per_token", default=chosen, scope=scope),
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
