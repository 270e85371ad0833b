"""Mixture of experts."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ml.config import child, configurable, require
from ml.layers.checks import MAX_COUNT, positive
from ml.layers.context import Context
from ml.layers.experts import Experts
from ml.layers.linear import Linear
from ml.layers.mlp import GatedMLP
from ml.layers.protocol import NoProducts
from ml.layers.routing import SoftmaxRouter


@configurable
class MixtureOfExperts(NoProducts):
    """Mixture of experts: y = Σ_j weight_j · expert_j(x) over the experts j that the router chooses for a token.

    Shazeer et al. 2017; Jiang et al. 2024, Mixtral. Dropless: an expert processes every token that is routed to it. The
    experts are `experts/expert_0`, `experts/expert_1`, ...

    Args:
        hidden_size: Width of the residual stream, H.
        num_experts: Number of experts, E.
        experts_per_token: Number of experts that process each token, k.
        expert: Constructor of one expert, an MLP; its `intermediate_size` is that of one expert.
        router: Constructor of the router.
        shared_expert: Constructor of an MLP that every token passes, added to y (Dai et al. 2024, DeepSeekMoE); None
            adds none.
        shared_expert_gate: Multiplies the output of the shared expert by sigmoid(shared_expert_gate(x)) (Qwen2-MoE).
        weight_on_input: Multiplies the input of each chosen expert by its weight, instead of the output (Llama 4).
        grouped: Computes all experts with grouped matrix products (True) or one at a time (False). None groups where
            that is one kernel, on a CUDA device in bfloat16, if the experts allow it.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        num_experts: int = 8,
        experts_per_token: int = 2,
        expert: Callable[..., nn.Module] = GatedMLP,
        router: Callable[..., nn.Module] = SoftmaxRouter,
        shared_expert: Callable[..., nn.Module] | None = None,
        shared_expert_gate: bool = False,
        weight_on_input: bool = False,
        grouped: bool | None = None,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        self.num_experts = positive("num_experts", num_experts, at_most=MAX_COUNT)
        chosen = positive("experts_per_token", experts_per_token)
        fits = chosen <= self.num_experts
        require(fits, "experts_per_token", f"must be at most num_experts ({num_experts}), not {experts_per_token}")
        self.experts_per_token = min(chosen, self.num_experts)
        self.router = child("router", router, hidden_size, self.num_experts, self.experts_per_token)
        sizes = (hidden_size, self.num_experts, self.experts_per_token)
        self.experts = child("experts", Experts, *sizes, expert, grouped, weight_on_input)
        obstacle = self.experts.obstacle_to_grouping
        require(not grouped or obstacle is None, "grouped", str(obstacle))
        self.shared_expert = self.shared_expert_gate = None
        has_shared = shared_expert is not None
        require(has_shared or not shared_expert_gate, "shared_expert_gate", "needs a shared_expert")
        if shared_expert is not None:
            self.shared_expert = child("shared_expert", shared_expert, hidden_size)
        if has_shared and shared_expert_gate:
            self.shared_expert_gate = child("shared_expert_gate", Linear, hidden_size, 1)

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        tokens = x.flatten(0, -2)  # (B T, H)
        weights, chosen = self.router(tokens, context)
        padding = None if context is None else context.padding
        if padding is not None:  # (B, T): those tokens have no expert
            is_padding = padding.flatten()[:, None]
            weights, chosen = weights.masked_fill(is_padding, 0.0), chosen.masked_fill(is_padding, self.num_experts)
        y = self.experts(tokens, weights, chosen, context).view_as(x)
        if self.shared_expert is None:
            return y
        shared = self.shared_expert(x, context)
        if self.shared_expert_gate is not None:
            shared = torch.sigmoid(self.shared_expert_gate(x)) * shared
        return y + shared

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, experts_per_token={self.experts_per_token}"
