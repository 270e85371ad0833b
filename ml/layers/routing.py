"""Routers: the experts of each token and their weights."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ml.config import configurable, require
from ml.layers.checks import non_negative, positive, positive_float
from ml.layers.children import weight_child
from ml.layers.context import Auxiliary, Context
from ml.layers.initialization import Initialization, normal
from ml.layers.protocol import Balanced, Buffered, Layer


class Router(Layer):
    """Base class of routers: the logits W x, with W of shape (E, H), and the load and the losses.

    Called as `router(x, context)` with tokens (N, H), a router returns weights and indices of the chosen experts, both
    (N, experts_per_token). In training it adds the number of tokens of each expert, and its losses, to
    `context.auxiliary`.
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        experts_per_token: int,
        normalize: bool,
        weight_initialization: Initialization,
        lr_scale: float,
    ):
        super().__init__(lr_scale)
        has_gradient = experts_per_token > 1 or num_experts == 1 or not normalize
        message = "makes every weight 1 where experts_per_token is 1, so the router has no gradient: set it to False"
        require(has_gradient, "normalize", message)
        self.normalize = normalize
        self.experts_per_token = experts_per_token
        self.weight = weight_child((num_experts, hidden_size), weight_initialization)

    def logits(self, x: Tensor) -> Tensor:
        """(N, H) -> (N, E), at least float32 under autocast too: a rounded score would send tokens elsewhere."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(dtype), self.weight.to(dtype))

    def auxiliary_of(self, context: Context | None) -> Auxiliary | None:
        """Collector of the load and the losses of this pass; None where they are not needed."""
        return context.auxiliary if self.training and context is not None else None

    def routed(self, context: Context | None) -> Tensor | None:
        """(N), false for padding, which has no expert and counts nowhere; None where all tokens count."""
        return None if context is None or context.padding is None else ~context.padding.flatten()

    def load(self, experts: Tensor, routed: Tensor | None = None) -> Tensor:
        """Number of tokens that chose each expert: (N, k) -> (E), float32.

        Args:
            experts: (N, k).
            routed: (N), false for padding; None where all tokens count.
        """
        chosen = experts.detach().flatten()
        counts = torch.zeros(len(self.weight), dtype=torch.int64, device=chosen.device)
        once = torch.ones_like(chosen) if routed is None else routed[:, None].expand_as(experts).flatten().long()
        return counts.scatter_add_(0, chosen, once).float()  # `bincount` would synchronize

    def training_flops_per_token(self, sequence_length: int) -> float:
        """Two operations an entry of W forward, four backward."""
        return 6.0 * self.weight.numel()

    def extra_repr(self) -> str:
        num_experts, hidden_size = self.weight.shape
        return f"{hidden_size}, num_experts={num_experts}, experts_per_token={self.experts_per_token}"


def mean_of(values: Tensor, routed: Tensor | None) -> Tensor:
    """Mean over the first dimension (N) of the values of routed tokens (N); 0 where there is none."""
    if routed is None:
        return values.mean(0)
    counted = routed.view(-1, *[1] * (values.dim() - 1))
    return values.where(counted, 0.0).sum(0) / routed.sum().clamp(min=1)


@configurable
class SoftmaxRouter(Router):
    """Chooses the k most probable experts, weighted with p = softmax(W x) (Shazeer et al. 2017; Fedus et al. 2021,
    Switch).

    Args:
        hidden_size: Width of the residual stream, H.
        num_experts: Number of experts, E.
        experts_per_token: Number of experts that process each token, k.
        normalize: Divides the weights of the chosen experts by their sum (Mixtral, Qwen3-MoE); not with one expert per
            token, whose weight would be 1.
        auxiliary_loss: Coefficient of the load balancing loss E Σ_e f_e P_e, with f_e the choices of e per token and
            P_e the mean of p_e; it is k where the load is even. 0.01 is that of Switch (section 2.2), 0.001 that of
            Mixtral and Qwen.
        z_loss: Coefficient of mean((log Σ_e exp logit_e)²), which keeps the logits small (Zoph et al. 2022, ST-MoE:
            0.001).
        weight_initialization: Initialization of W, (E, H).
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        experts_per_token: int,
        *,
        normalize: bool = True,
        auxiliary_loss: float = 0.01,
        z_loss: float = 0.0,
        weight_initialization: Initialization = normal,
        lr_scale: float = 1.0,
    ):
        super().__init__(hidden_size, num_experts, experts_per_token, normalize, weight_initialization, lr_scale)
        self.auxiliary_loss = non_negative("auxiliary_loss", auxiliary_loss)
        self.z_loss = non_negative("z_loss", z_loss)
        self.couples_sequences = self.auxiliary_loss > 0.0 or self.z_loss > 0.0

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        logits = self.logits(x)  # (N, E)
        probabilities = logits.softmax(-1)
        weights, experts = probabilities.topk(self.experts_per_token, dim=-1)  # (N, k)
        if (auxiliary := self.auxiliary_of(context)) is not None:
            routed = self.routed(context)
            load = self.load(experts, routed)
            auxiliary.add(self, load, self.losses(logits, probabilities, load, routed))
        if self.normalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights, experts

    def losses(self, logits: Tensor, probabilities: Tensor, load: Tensor, routed: Tensor | None = None) -> list[Tensor]:
        """Losses with a coefficient, each multiplied by it; means over the routed tokens (N)."""
        losses = []
        if self.auxiliary_loss:
            num_tokens = len(logits) if routed is None else routed.sum().clamp(min=1)
            choices = load / num_tokens  # (E) per token
            losses.append(self.auxiliary_loss * len(load) * (choices * mean_of(probabilities, routed)).sum())
        if self.z_loss:
            losses.append(self.z_loss * mean_of(logits.logsumexp(-1).square(), routed))
        return losses

    def extra_repr(self) -> str:
        losses = f"auxiliary_loss={self.auxiliary_loss}, z_loss={self.z_loss}"
        return f"{super().extra_repr()}, normalize={self.normalize}, {losses}"


@configurable
class SigmoidRouter(Router, Balanced, Buffered):
    """Chooses the k experts with the greatest s + b, weighted with scale · s / Σ s; s = sigmoid(W x) (DeepSeek-V3,
    2.1.2).

    The bias b balances the load without a loss: it affects only the choice. After each step it rises by
    `bias_update_rate` for an expert with fewer tokens than the mean and falls for one with more (Wang et al. 2024).

    Args:
        hidden_size: Width of the residual stream, H.
        num_experts: Number of experts, E.
        experts_per_token: Number of experts that process each token, k.
        normalize: Divides the weights by Σ s over the chosen experts; not with one expert per token, whose weight would
            be 1.
        scale: Factor of the weights (`routed_scaling_factor`).
        num_groups: Number of groups of consecutive experts.
        groups_per_token: Number of groups whose experts a token chooses from: those whose two best experts have the
            greatest sum of s + b.
        bias_update_rate: Change of b per step; 0 keeps it constant.
        weight_initialization: Initialization of W, (E, H).
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    balance_bias: Tensor  # (E), float32

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        experts_per_token: int,
        *,
        normalize: bool = True,
        scale: float = 1.0,
        num_groups: int = 1,
        groups_per_token: int = 1,
        bias_update_rate: float = 0.001,
        weight_initialization: Initialization = normal,
        lr_scale: float = 1.0,
    ):
        super().__init__(hidden_size, num_experts, experts_per_token, normalize, weight_initialization, lr_scale)
        self.scale = positive_float("scale", scale)
        self.num_groups = positive("num_groups", num_groups)
        self.groups_per_token = positive("groups_per_token", groups_per_token)
        self.bias_update_rate = non_negative("bias_update_rate", bias_update_rate)
        self._check_groups(num_experts)
        self.register_buffer("balance_bias", torch.zeros(num_experts, dtype=torch.float32))

    def _check_groups(self, num_experts: int) -> None:
        divides = num_experts % self.num_groups == 0
        require(divides, "num_groups", f"must divide num_experts ({num_experts}), not be {self.num_groups}")
        enough_groups = self.groups_per_token <= self.num_groups
        message = f"must be at most num_groups ({self.num_groups}), not {self.groups_per_token}"
        require(enough_groups, "groups_per_token", message)
        reachable = self.groups_per_token * num_experts // self.num_groups
        message = f"leaves a token {reachable} experts, and experts_per_token is {self.experts_per_token}"
        enough_experts = not (divides and enough_groups) or reachable >= self.experts_per_token
        require(enough_experts, "groups_per_token", message)

    def reset_buffers(self, device: torch.device | str) -> None:
        """Sets the balancing bias to zero."""
        self.balance_bias = torch.zeros(len(self.weight), dtype=torch.float32, device=device)

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        scores = self.logits(x).sigmoid()  # (N, E)
        experts = self.choose(scores.detach() + self.balance_bias)  # (N, k)
        if (auxiliary := self.auxiliary_of(context)) is not None:
            auxiliary.add(self, self.load(experts, self.routed(context)), [])
        weights = scores.gather(-1, experts)
        if self.normalize:
            # All scores of a token may underflow; then its weights are 0 and not NaN.
            weights = weights / (weights.sum(-1, keepdim=True) + torch.finfo(weights.dtype).tiny)
        return weights * self.scale, experts

    def choose(self, scores: Tensor) -> Tensor:
        """Indices of the best experts in the best groups: (N, E) -> (N, k)."""
        if self.groups_per_token < self.num_groups:
            groups = scores.unflatten(-1, (self.num_groups, -1))  # (N, groups, experts of a group)
            best_two = groups.topk(min(2, groups.shape[-1]), dim=-1).values.sum(-1)  # (N, groups)
            chosen = best_two.topk(self.groups_per_token, dim=-1).indices
            is_open = torch.zeros_like(best_two, dtype=torch.bool).scatter_(-1, chosen, True)
            scores = groups.masked_fill(~is_open.unsqueeze(-1), -torch.inf).flatten(-2)
        return scores.topk(self.experts_per_token, dim=-1).indices

    @torch.no_grad()
    def balance(self, load: Tensor) -> None:
        """Moves the bias by the tokens (E) that each expert got in a step: b += rate · sign(mean(load) - load).

        A frozen router is not changed.
        """
        if not self.weight.requires_grad:
            return
        self.balance_bias += self.bias_update_rate * torch.sign(load.mean() - load)

    def extra_repr(self) -> str:
        groups = f"num_groups={self.num_groups}, groups_per_token={self.groups_per_token}"
        return (
            f"{super().extra_repr()}, {groups}, normalize={self.normalize}, scale={self.scale}, "
            f"bias_update_rate={self.bias_update_rate}"
        )
