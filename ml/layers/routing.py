"""Routers: the experts of each token and their weights."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ml.config import configurable, require, unused
from ml.layers.checks import non_negative, positive, positive_float
from ml.layers.children import bias_child, weight_child
from ml.layers.context import Auxiliary, Context
from ml.layers.initialization import Initialization, normal, zeros
from ml.layers.protocol import Balanced, Buffered


class Router(Balanced, Buffered):
    """Base class of routers: the logits W x + b, with W of shape (E, H), the choice, the load and the losses.

    Called as `router(x, context)` with tokens (N, H), a router returns weights and indices of the chosen experts, both
    (N, experts_per_token). In training it adds the number of tokens of each expert, and its losses, to
    `context.auxiliary`.

    Attributes:
        balance_bias: Added to the scores for the choice alone, (E), float32; None without one.
        best_of_group: Number of the best experts of a group whose scores are summed to that of the group.
    """

    balance_bias: Tensor | None
    best_of_group: int = 1

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        experts_per_token: int,
        *,
        normalize: bool,
        scale: float,
        num_groups: int,
        groups_per_token: int,
        bias: bool,
        balance_bias: bool,
        bias_update_rate: float,
        weight_initialization: Initialization,
        bias_initialization: Initialization,
        lr_scale: float,
    ):
        super().__init__(lr_scale)
        has_gradient = experts_per_token > 1 or num_experts == 1 or not normalize
        message = "makes every weight 1 where experts_per_token is 1, so the router has no gradient: set it to False"
        require(has_gradient, "normalize", message)
        self.normalize = normalize
        self.scale = positive_float("scale", scale)
        self.experts_per_token = experts_per_token
        self.num_groups = positive("num_groups", num_groups)
        self.groups_per_token = positive("groups_per_token", groups_per_token)
        self._check_groups(num_experts)
        self.bias_update_rate = non_negative("bias_update_rate", bias_update_rate)
        self.weight = weight_child((num_experts, hidden_size), weight_initialization)
        self.bias = bias_child(bias, num_experts, bias_initialization)
        self.register_buffer("balance_bias", torch.zeros(num_experts, dtype=torch.float32) if balance_bias else None)

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
        if self.balance_bias is not None:
            self.balance_bias = torch.zeros(len(self.weight), dtype=torch.float32, device=device)

    def logits(self, x: Tensor) -> Tensor:
        """(N, H) -> (N, E), at least float32 under autocast too: a rounded score would send tokens elsewhere."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.to(dtype)
            return F.linear(x.to(dtype), self.weight.to(dtype), bias)

    def choose(self, scores: Tensor) -> Tensor:
        """Indices of the experts with the greatest scores plus balancing bias, in the best groups: (N, E) -> (N, k)."""
        if self.balance_bias is not None:
            scores = scores + self.balance_bias
        if self.groups_per_token < self.num_groups:
            groups = scores.unflatten(-1, (self.num_groups, -1))  # (N, groups, experts of a group)
            best = groups.topk(min(self.best_of_group, groups.shape[-1]), dim=-1).values.sum(-1)  # (N, groups)
            chosen = best.topk(self.groups_per_token, dim=-1).indices
            is_open = torch.zeros_like(best, dtype=torch.bool).scatter_(-1, chosen, True)
            scores = groups.masked_fill(~is_open.unsqueeze(-1), -torch.inf).flatten(-2)
        return scores.topk(self.experts_per_token, dim=-1).indices

    def weights(self, scores: Tensor, experts: Tensor) -> Tensor:
        """Weights of the chosen experts: (N, E), (N, k) -> (N, k)."""
        weights = scores.gather(-1, experts)
        if self.normalize:
            # All scores of a token may underflow; then its weights are 0 and not NaN.
            weights = weights / (weights.sum(-1, keepdim=True) + torch.finfo(weights.dtype).tiny)
        return weights if self.scale == 1.0 else weights * self.scale

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

    @torch.no_grad()
    def balance(self, load: Tensor) -> None:
        """Moves the bias by the tokens (E) that each expert got in a step: b += rate · sign(mean(load) - load).

        A frozen router is not changed.
        """
        if self.balance_bias is not None and self.weight.requires_grad:
            self.balance_bias += self.bias_update_rate * torch.sign(load.mean() - load)

    def training_flops_per_token(self, sequence_length: int) -> float:
        """Two operations an entry of W forward, four backward."""
        return 6.0 * self.weight.numel()

    def extra_repr(self) -> str:
        num_experts, hidden_size = self.weight.shape
        sizes = f"{hidden_size}, num_experts={num_experts}, experts_per_token={self.experts_per_token}"
        groups = f"num_groups={self.num_groups}, groups_per_token={self.groups_per_token}"
        weights = f"normalize={self.normalize}, scale={self.scale}, bias={self.bias is not None}"
        rate = None if self.balance_bias is None else self.bias_update_rate
        return f"{sizes}, {groups}, {weights}, bias_update_rate={rate}"


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
        scale: Factor of the weights (`routed_scaling_factor`).
        num_groups: Number of groups of consecutive experts.
        groups_per_token: Number of groups whose experts a token chooses from: those with the most probable experts
            (DeepSeek-V2, section 2.2.2).
        bias: Adds a trained b, (num_experts), to the logits (gpt-oss).
        balance_bias: Adds a bias to the probabilities for the choice alone, which balances the load as that of
            `SigmoidRouter` (Ernie 4.5, LongCat).
        bias_update_rate: Change of the balancing bias per step; 0 keeps it constant.
        auxiliary_loss: Coefficient of the load balancing loss E Σ_e f_e P_e, with f_e the choices of e per token and
            P_e the mean of p_e; it is k where the load is even. 0.01 is that of Switch (section 2.2), 0.001 that of
            Mixtral and Qwen.
        z_loss: Coefficient of mean((log Σ_e exp logit_e)²), which keeps the logits small (Zoph et al. 2022, ST-MoE:
            0.001).
        weight_initialization: Initialization of W, (E, H).
        bias_initialization: Initialization of b.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

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
        bias: bool = False,
        balance_bias: bool = False,
        bias_update_rate: float = 0.001,
        auxiliary_loss: float = 0.01,
        z_loss: float = 0.0,
        weight_initialization: Initialization = normal,
        bias_initialization: Initialization = zeros,
        lr_scale: float = 1.0,
    ):
        unused(not balance_bias, "bias_update_rate", "balance_bias")
        super().__init__(
            hidden_size,
            num_experts,
            experts_per_token,
            normalize=normalize,
            scale=scale,
            num_groups=num_groups,
            groups_per_token=groups_per_token,
            bias=bias,
            balance_bias=balance_bias,
            bias_update_rate=bias_update_rate,
            weight_initialization=weight_initialization,
            bias_initialization=bias_initialization,
            lr_scale=lr_scale,
        )
        self.auxiliary_loss = non_negative("auxiliary_loss", auxiliary_loss)
        self.z_loss = non_negative("z_loss", z_loss)
        self.couples_sequences = self.auxiliary_loss > 0.0 or self.z_loss > 0.0

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        logits = self.logits(x)  # (N, E)
        probabilities = logits.softmax(-1)
        experts = self.choose(probabilities.detach())  # (N, k)
        if (auxiliary := self.auxiliary_of(context)) is not None:
            routed = self.routed(context)
            load = self.load(experts, routed)
            auxiliary.add(self, load, self.losses(logits, probabilities, load, routed))
        return self.weights(probabilities, experts), experts

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
        return f"{super().extra_repr()}, auxiliary_loss={self.auxiliary_loss}, z_loss={self.z_loss}"


@configurable
class SigmoidRouter(Router):
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
        bias: Adds a trained vector, (num_experts), to the logits.
        bias_update_rate: Change of b per step; 0 keeps it constant.
        weight_initialization: Initialization of W, (E, H).
        bias_initialization: Initialization of the trained vector.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    best_of_group = 2

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
        bias: bool = False,
        bias_update_rate: float = 0.001,
        weight_initialization: Initialization = normal,
        bias_initialization: Initialization = zeros,
        lr_scale: float = 1.0,
    ):
        super().__init__(
            hidden_size,
            num_experts,
            experts_per_token,
            normalize=normalize,
            scale=scale,
            num_groups=num_groups,
            groups_per_token=groups_per_token,
            bias=bias,
            balance_bias=True,
            bias_update_rate=bias_update_rate,
            weight_initialization=weight_initialization,
            bias_initialization=bias_initialization,
            lr_scale=lr_scale,
        )

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        scores = self.logits(x).sigmoid()  # (N, E)
        experts = self.choose(scores.detach())  # (N, k)
        if (auxiliary := self.auxiliary_of(context)) is not None:
            auxiliary.add(self, self.load(experts, self.routed(context)), [])
        return self.weights(scores, experts), experts
