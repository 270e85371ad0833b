"""Rows of MLPs without a gate and of mixtures of them, as the mixers of blocks (Nemotron-H)."""

from ml.blocks import DecoderBlock
from ml.interop.common import ACTIVATIONS
from ml.interop.fields import Bias, Field, Part, Row, Set, View, within
from ml.interop.tensors import TensorRow, rows_within
from ml.layers import MLP, Linear, SigmoidRouter
from ml.layers.moe import MixtureOfExperts

_PARTS = {"": "", "shared_experts.": "shared_expert.", "experts.{e}.": "experts.expert_{e}."}


def _width(name: str, default: int, scope: str) -> tuple[Row, ...]:
    def read(view: View) -> int | None:
        mlp = view.first(MLP, scope)
        return None if mlp is None else mlp.up.out_features

    return (
        Field(name, MLP, "intermediate_size", default=default, scope=scope, read=read),
        Part("mlp_hidden_act", MLP, "activation", ACTIVATIONS, "relu2", scope),
    )


def mlp_mixer(scope: str) -> tuple[Row, ...]:
    """An MLP as the mixer of the blocks of a scope.

    Args:
        scope: The scope of the bindings.
    """
    inside = within(scope, "mixer")
    return (
        Set(DecoderBlock, "mixer", MLP, scope),
        *_width("intermediate_size", 21504, inside),
        Bias(("up", "down"), Linear, MLP, "mlp_bias", False, inside),
    )


def mixture_mixer(scope: str) -> tuple[Row, ...]:
    """A mixture of experts and a shared one as the mixer of the blocks of a scope.

    Args:
        scope: The scope of the bindings.
    """
    experts, shared = within(scope, "experts"), within(scope, "shared_expert")
    return (
        Set(DecoderBlock, "mixer", MixtureOfExperts, scope),
        Set(MixtureOfExperts, "router", SigmoidRouter, scope),
        Set(MixtureOfExperts, "expert", MLP, scope),
        Set(MixtureOfExperts, "shared_expert", MLP, scope),
        Field(
            "n_routed_experts", MixtureOfExperts, "num_experts", default=8, scope=scope, aliases=("num_local_experts",)
        ),
        Field("num_experts_per_tok", MixtureOfExperts, "experts_per_token", default=2, scope=scope),
        *_width("moe_intermediate_size", 7688, experts),
        *_width("moe_shared_expert_intermediate_size", 7688, shared),
        Bias(("up", "down"), Linear, MLP, None, False, experts),
        Bias(("up", "down"), Linear, MLP, "mlp_bias", False, shared),
        Field("routed_scaling_factor", SigmoidRouter, "scale", default=1.0, scope=scope),
        Field("n_group", SigmoidRouter, "num_groups", default=1, scope=scope),
        Field("topk_group", SigmoidRouter, "groups_per_token", default=1, scope=scope),
        Field("norm_topk_prob", SigmoidRouter, "normalize", default=True, scope=scope),
    )


def mlp_tensors(stored: str) -> tuple[TensorRow, ...]:
    """Tensors of both.

    Args:
        stored: Their path in the checkpoint.
    """
    router = {"gate.weight": "router.weight", "gate.e_score_correction_bias": "router.balance_bias"}
    parts = {f"{name}{part}_proj.": f"{ours}{part}." for name, ours in _PARTS.items() for part in ("up", "down")}
    return rows_within(stored, "{block}.mixer", {**router, **parts})
