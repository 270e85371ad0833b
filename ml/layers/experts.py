"""Experts of a mixture, computed one at a time or by grouped matrix products."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ml.config import children, configurable
from ml.layers.context import Context
from ml.layers.copying import ModuleCopier
from ml.layers.grouped_experts import GROUPINGS, grouped_experts, obstacle_to_grouping
from ml.layers.protocol import NoProducts
from ml.layers.tracing import has_values

# On the CPU a 16-bit product is compiled for its shape, which takes longer than a small product. Row counts rounded up
# to a multiple of this repeat.
_ROWS = 16


@configurable
class Experts(NoProducts):
    """Weighted sum of the chosen experts j of a token t: y_t = Σ_j weight_tj · expert_j(x_t).

    The experts are `expert_0`, `expert_1`, ..., each with its own scope and weights.

    Args:
        hidden_size: Width of the residual stream, H.
        num_experts: Number of experts, E.
        experts_per_token: Number of experts that process each token, k.
        expert: Constructor of one expert.
        grouped: Computes all experts with grouped matrix products (True) or one at a time (False); None decides by
            device and dtype.
        weight_on_input: Multiplies the inputs of the experts by the weights, instead of their outputs.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        experts_per_token: int,
        expert: Callable[..., nn.Module],
        grouped: bool | None,
        weight_on_input: bool,
        *,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        self.grouped = grouped
        self.weight_on_input = weight_on_input
        self._fraction = experts_per_token / num_experts
        names = [f"expert_{index}" for index in range(num_experts)]
        for name, built in children(names, expert, hidden_size, copier=ModuleCopier()).items():
            setattr(self, name, built)
        self.obstacle_to_grouping = obstacle_to_grouping(self.in_order)

    @property
    def in_order(self) -> list[nn.Module]:
        """The experts by number."""
        return list(self.children())

    def fraction_of(self, child: str) -> float:
        """The chosen experts over all of them."""
        return self._fraction

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor, context: Context | None = None) -> Tensor:
        """Tokens (N, H), with the weights and numbers (N, k) of their experts, to (N, H).

        A token with the number E and the weight 0 has no expert; its output is 0.
        """
        x = x.to(computing_dtype(x))  # once instead of in each layer of each expert
        if self.is_grouped(x):
            return grouped_experts(self.in_order, x, weights, chosen, self.weight_on_input)
        return self.one_by_one(x, weights, chosen, context)

    def is_grouped(self, x: Tensor) -> bool:
        """True where grouped products are used for `x`."""
        return self._is_grouped_on(x.device.type, x.dtype)

    def _is_grouped_on(self, device_type: str, dtype: torch.dtype) -> bool:
        if self.grouped is not None:
            return self.grouped
        return device_type == "cuda" and dtype == torch.bfloat16 and self.obstacle_to_grouping is None

    def obstacle_on(self, device_type: str, dtype: torch.dtype) -> str | None:
        """Grouped products on CUDA, which are in bfloat16."""
        if not self.grouped or device_type != "cuda" or dtype == torch.bfloat16:
            return None
        return (
            f"MixtureOfExperts.grouped = True needs matrix products in bfloat16 on CUDA, not {_name_of(dtype)}: "
            "set Trainer.precision = @MixedBFloat16, or MixtureOfExperts.grouped = None"
        )

    def reason_to_synchronize(self, device_type: str, dtype: torch.dtype) -> str | None:
        """Experts one at a time on a device, whose counts of tokens the host reads."""
        if device_type == "cpu" or self._is_grouped_on(device_type, dtype):
            return None
        if self.grouped is None and self.obstacle_to_grouping is not None:
            remedy = f"MixtureOfExperts.grouped {self.obstacle_to_grouping}"
        else:
            needed = {"MixtureOfExperts.grouped = None": self.grouped is None}
            needed["Trainer.precision = @MixedBFloat16"] = dtype == torch.bfloat16
            remedy = f"set {' and '.join(setting for setting, is_set in needed.items() if not is_set)}"
        return f"experts are computed one at a time in {_name_of(dtype)}; {remedy}"

    def one_by_one(self, x: Tensor, weights: Tensor, chosen: Tensor, context: Context | None) -> Tensor:
        """Each expert on its own tokens, none of which is dropped.

        Synchronizes with the device to read the counts. With gradients enabled, an expert without tokens computes on
        an empty batch, so that its gradient is zero instead of missing.
        """
        shares = shares_of_experts(chosen, len(self.in_order), self.row_multiple(x))
        pairs = list(zip(self.in_order, shares, strict=True))
        busy = [pair for pair in pairs if len(pair[1].tokens) or torch.is_grad_enabled()] or pairs[:1]
        shares = [share for _, share in busy]
        parts = _Dispatch.apply(x, shares)
        if self.weight_on_input:
            pairs_of_parts = zip(parts, shares, strict=True)
            parts = [part * _weights_of(share, weights).to(part.dtype) for part, share in pairs_of_parts]
            weights = torch.ones_like(weights)
        inner = None if context is None else context.without_padding()
        outputs = [expert(part, inner) for (expert, _), part in zip(busy, parts, strict=True)]
        return _Combine.apply(weights, shares, *outputs)

    def row_multiple(self, x: Tensor) -> int:
        """Multiple that the rows of an expert are padded to, where padding cannot affect the other rows."""
        acts_on_rows = all(type(expert) in GROUPINGS for expert in self.in_order)
        return _ROWS if x.device.type == "cpu" and x.element_size() == 2 and acts_on_rows else 1


class Share(NamedTuple):
    """Choices of one expert (n), and their tokens (n), followed by padding."""

    choices: Tensor
    tokens: Tensor


def _weights_of(share: Share, weights: Tensor) -> Tensor:
    """Weights (n, 1) of the choices of a share, out of all (N, k), followed by zeros for the padding."""
    chosen = weights.flatten().index_select(0, share.choices)
    return nn.functional.pad(chosen, (0, len(share.tokens) - len(chosen)))[:, None]


def shares_of_experts(chosen: Tensor, num_experts: int, row_multiple: int) -> list[Share]:
    """Sorts the choices (N, k) by expert; within an expert the tokens stay in order. Those of no expert are dropped."""
    numbers, choices = chosen.flatten().sort(stable=True)
    bounds = torch.searchsorted(numbers, torch.arange(num_experts + 1, device=numbers.device))
    counts = bounds.diff().tolist() if has_values(bounds) else _even(len(choices), num_experts)
    choices = choices[: sum(counts)]
    tokens = (choices // chosen.shape[1]).split(counts)
    filled = [nn.functional.pad(part, (0, -len(part) % row_multiple)) for part in tokens]
    return [Share(*share) for share in zip(choices.split(counts), filled, strict=True)]


def _even(count: int, num_parts: int) -> list[int]:
    """Splits a count into parts that differ by at most one."""
    return [count // num_parts + (index < count % num_parts) for index in range(num_parts)]


class _Dispatch(torch.autograd.Function):
    """The rows (1, n, H) of each expert out of x (N, H). Its gradient is one sum, and not one for each expert."""

    @staticmethod
    def forward(ctx, x: Tensor, shares: list[Share]) -> tuple[Tensor, ...]:
        ctx.shares, ctx.shape = shares, x.shape
        return tuple(_taken(x, share).unsqueeze(0) for share in shares)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        dtype = gradients[0].dtype
        total = gradients[0].new_zeros(ctx.shape, dtype=torch.promote_types(dtype, torch.float32))
        for share, gradient in zip(ctx.shares, gradients, strict=True):
            _add(total, share, gradient.squeeze(0)[: len(share.choices)])
        return total.to(dtype), None


class _Combine(torch.autograd.Function):
    """Σ_j weight_tj · output_j(t): the outputs (1, n, H) of the experts to (N, H), summed in float32."""

    @staticmethod
    def forward(ctx, weights: Tensor, shares: list[Share], *outputs: Tensor) -> Tensor:
        ctx.shares = shares
        ctx.save_for_backward(weights, *outputs)
        wide = torch.promote_types(outputs[0].dtype, weights.dtype)
        total = outputs[0].new_zeros(len(weights), outputs[0].shape[-1], dtype=wide)
        for share, output in zip(shares, outputs, strict=True):
            of_choices = weights.flatten()[share.choices].unsqueeze(-1)
            _add(total, share, output.squeeze(0)[: len(of_choices)] * of_choices)
        return total.to(outputs[0].dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        weights, *outputs = ctx.saved_tensors
        weight_gradient = torch.zeros_like(weights).flatten()
        output_gradients = []
        for share, output in zip(ctx.shares, outputs, strict=True):
            rows = _taken(gradient, share).to(weights.dtype)
            in_use = rows[: len(share.choices)]
            weight_gradient[share.choices] = (in_use * output.squeeze(0)[: len(in_use)]).sum(-1)
            in_use.mul_(weights.flatten()[share.choices].unsqueeze(-1))
            output_gradients.append(rows.to(output.dtype).unsqueeze(0))
        return weight_gradient.view_as(weights), None, *output_gradients


def _taken(x: Tensor, share: Share) -> Tensor:
    """The rows of a share's tokens, padded with zeros."""
    rows = x.index_select(0, share.tokens)
    rows[len(share.choices) :].zero_()
    return rows


def _add(total: Tensor, share: Share, rows: Tensor) -> None:
    """Adds rows to those of their tokens. No token occurs twice in a share, so the sums are deterministic."""
    total.index_add_(0, share.tokens[: len(rows)], rows.to(total.dtype))


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def computing_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a linear layer computes on `x`."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
