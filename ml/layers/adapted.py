"""Layers whose weight an adapter can change."""

from typing import Any

import torch
from torch import Tensor

from ml.layers.protocol import Adapter, Layer


class Adapted(Layer):
    """Base class of a layer with a weight that an adapter changes: merging, unmerging, and state dicts of both.

    A derived class sets `weight` and `adapter`. The state dict of a merged layer has the weight without the adapter as
    `base_weight` beside the merged one, so that it loads as what it is, and a layer without an adapter refuses it.

    Attributes:
        weight: Usually (out, in); None where the layer borrows one, which `merge` does not change.
        adapter: The adapter; None without one.
        base_weight: While the adapter is merged, the weight without it.
    """

    weight: Tensor | None
    adapter: Adapter | None
    base_weight: Tensor | None

    def __init__(self, lr_scale: float = 1.0):
        super().__init__(lr_scale)
        self.register_buffer("base_weight", None)

    @property
    def is_merged(self) -> bool:
        """True where `weight` contains the adapter."""
        return self.base_weight is not None

    @property
    def active_adapter(self) -> Adapter | None:
        """The adapter that is not in the weight; None where there is none, or where it is merged.

        Raises:
            ValueError: The adapter is merged, and the layer is to be trained.
        """
        if not self.is_merged:
            return self.adapter
        if self.training and torch.is_grad_enabled():
            raise ValueError(
                "the adapter is merged into the weight, and would not be trained: call unmerge_adapters(model), or "
                "model.eval() where nothing is trained"
            )
        return None

    def adapted_weight(self, weight: Tensor) -> Tensor:
        """The weight (out, in) with the adapter, from the layer's own or a borrowed one."""
        adapter = self.active_adapter
        return weight if adapter is None else self.merged_weight(adapter, weight)

    def merged_weight(self, adapter: Adapter, weight: Tensor) -> Tensor:
        """The weight with an adapter; a layer whose weight is not (out, in) overrides it."""
        return adapter.merged(weight)

    @torch.no_grad()
    def merge(self) -> None:
        """Merges the adapter into the weight, of which `base_weight` keeps a copy until `unmerge`."""
        if self.adapter is not None and self.weight is not None and not self.is_merged:
            self.base_weight = self.weight.detach().clone()
            self.weight.copy_(self.merged_weight(self.adapter, self.base_weight))

    @torch.no_grad()
    def unmerge(self) -> None:
        """Restores the weight without the adapter, bit for bit, whatever happened to the adapter since."""
        if self.base_weight is not None and self.weight is not None:
            self.weight.copy_(self.base_weight)
            self.base_weight = None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if self.adapter is not None and self.weight is not None:
            self.unmerge()
            if f"{prefix}base_weight" in state_dict:
                self.base_weight = torch.empty_like(self.weight).detach()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
