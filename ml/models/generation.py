"""Text from a model: one token after another."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ml.layers.context import Cache
from ml.models.language_model import LanguageModel


class Sampler(NamedTuple):
    """How a token is chosen from logits.

    temperature: divides them; 0 takes the likeliest. top_k: only so many of the likeliest stay. top_p: only the
    likeliest that together have this probability (Holtzman et al. 2019). min_p: only those with at least this part of
    the probability of the likeliest (Nguyen et al. 2024). They are applied in this order.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def probabilities(self, logits: Tensor) -> Tensor:
        """(..., V) -> (..., V): what is drawn from."""
        logits = logits.float()
        if self.temperature == 0.0:
            return F.one_hot(logits.argmax(-1), logits.shape[-1]).float()
        logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.top_p is not None:
            probabilities, order = logits.softmax(-1).sort(dim=-1, descending=True)
            before = probabilities.cumsum(-1) - probabilities  # of all that are likelier
            dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= self.top_p)
            logits = logits.masked_fill(dropped, -torch.inf)
        probabilities = logits.softmax(-1)
        if self.min_p is not None:
            least = self.min_p * probabilities.amax(-1, keepdim=True)
            probabilities = probabilities.where(probabilities >= least, 0.0)
            probabilities = probabilities / probabilities.sum(-1, keepdim=True)
        return probabilities

    def draw(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """(B, V) -> (B): the token at which the sum of the probabilities passes `uniform` (B), numbers in [0, 1)."""
        sums = self.probabilities(logits).double().cumsum(-1)
        places = torch.searchsorted(sums, (uniform[:, None] * sums[:, -1:]).contiguous(), right=True)
        return places[:, 0].clamp(max=logits.shape[-1] - 1)


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    sampler: Sampler,
    seed: int = 0,
    *,
    use_cache: bool = True,
) -> Iterator[Tensor]:
    """Yields the next token of every prompt, (B), `num_tokens` times.

    Shorter prompts are filled up on the left by a document of their own, which the rest does not see. What is drawn for
    a prompt depends on the seed and its number alone, not on the other prompts. Without a cache the whole text goes
    through the model for every token, which is slow and what the cache is tested against.

    Raises ValueError for an empty prompt, and where learned positions end.
    """
    device = next(model.parameters()).device
    longest = max(len(prompt) for prompt in prompts)
    if min(len(prompt) for prompt in prompts) == 0:
        raise ValueError("a prompt must have one token or more")
    limit = model.max_sequence_length
    if limit is not None and longest + num_tokens > limit:
        raise ValueError(f"a prompt of {longest} tokens and {num_tokens} more are beyond the model's {limit} positions")
    text = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    documents = None
    if any(len(prompt) < longest for prompt in prompts):
        documents = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    generators = [torch.Generator().manual_seed(_seed_of_row(seed, row)) for row in range(len(prompts))]
    cache = Cache() if use_cache else None
    new, new_documents = text, documents
    for _ in range(num_tokens):
        logits = model(new, documents=new_documents, cache=cache)[:, -1]
        uniform = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators]).to(device)
        token = sampler.draw(logits, uniform)
        yield token
        new, new_documents = token[:, None], None if documents is None else torch.ones_like(token)[:, None]
        if not use_cache:
            new = text = torch.cat((text, new), dim=1)
            if documents is not None:
                new_documents = documents = torch.cat((documents, new_documents), dim=1)


def _seed_of_row(seed: int, row: int) -> int:
    """A seed for each row; neighbouring seeds share none."""
    return (seed * 1_000_003 + row) % 2**63
