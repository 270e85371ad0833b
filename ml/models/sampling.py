"""Sampling of the next token from logits."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_NUM_SORTED = 1024  # sorted at first; what top_p keeps of a vocabulary is nearly always among them


class Sampler(NamedTuple):
    """Sampler of a token from logits.

    The filters are applied in this order; tokens as likely as the last one kept are kept too.

    Attributes:
        temperature: Divisor of the logits; 0 takes the most likely token.
        top_k: Number of most likely tokens to sample from; None samples from all.
        top_p: Samples from the most likely tokens with this total probability (Holtzman et al. 2019); None samples from
            all.
        min_p: Least probability relative to the most likely token (Nguyen et al. 2024); None samples from all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities after all filters: (B, V) -> (B, V)."""
        if self.temperature == 0.0:
            return F.one_hot(logits.argmax(-1), logits.shape[-1]).float()
        logits = self._scaled(logits)
        least = self._least(logits)
        return (logits if least is None else logits.masked_fill(logits < least, -torch.inf)).softmax(-1)

    def draw(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """(B, V) -> (B): the token at which the sum of the probabilities passes `uniform` (B), numbers in [0, 1)."""
        if self.temperature == 0.0:
            return logits.argmax(-1)
        sums = self.probabilities(logits).double().cumsum(-1)
        places = torch.searchsorted(sums, (uniform[:, None] * sums[:, -1:]).contiguous(), right=True)
        return places[:, 0].clamp(max=logits.shape[-1] - 1)

    def _scaled(self, logits: Tensor) -> Tensor:
        """The largest is 0, so that no temperature, however small, makes an infinite one."""
        logits = logits.float()
        return (logits - logits.amax(-1, keepdim=True)) / self.temperature

    def _least(self, logits: Tensor) -> Tensor | None:
        """The smallest logit that stays, (B, 1), of those whose largest is 0; None where all stay."""
        bounds = []
        top_p = None if self.top_p == 1.0 else self.top_p
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            top = logits.topk(self.top_k, dim=-1).values  # sorted
            bounds.append(top[:, -1:])
            if top_p is not None:
                bounds.append(_nucleus(top, top.logsumexp(-1, keepdim=True), top_p)[0])
        elif top_p is not None:
            bounds.append(_nucleus_of_all(logits, top_p))
        if self.min_p:
            bounds.append(torch.full_like(logits[:, :1], self.min_p).log())
        return torch.stack(bounds).amax(0) if bounds else None


def _nucleus_of_all(logits: Tensor, top_p: float) -> Tensor:
    """Smallest logit of the nucleus. Sorting a large vocabulary would dominate the time."""
    normalizer, size = logits.logsumexp(-1, keepdim=True), _NUM_SORTED
    while True:
        top = logits.topk(min(size, logits.shape[-1]), dim=-1).values
        least, is_whole = _nucleus(top, normalizer, top_p)
        if size >= logits.shape[-1] or is_whole.all():
            return least
        size *= 16


def _nucleus(top: Tensor, normalizer: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The last logit (B, 1) of the fewest that have `top_p` together, and (B) whether these ones, in order, have it."""
    sums = (top - normalizer).exp().cumsum(-1)
    before = F.pad(sums[:, :-1], (1, 0))  # of all more likely tokens
    num_kept = (before < top_p).sum(-1, keepdim=True)
    return top.gather(-1, num_kept - 1), sums[:, -1] >= top_p
