"""Text from a model: one token after another."""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from ml.layers.context import Cache
from ml.models.language_model import LanguageModel
from ml.models.sampling import Sampler

_DRAWN_AT_ONCE = 256


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    sampler: Sampler,
    seed: int = 0,
    *,
    num_choices: int | None = None,
    use_cache: bool = True,
) -> Iterator[Tensor]:
    """Yields the next token of every prompt, (B), `num_tokens` times.

    Shorter prompts are filled up on the left by a document of their own, which the rest does not see. What is drawn for
    a prompt depends on the seed and its number alone, not on the other prompts. Without a cache the whole text goes
    through the model for every token, which is slow and what the cache is tested against.

    num_choices: tokens from this one on are never drawn, as those of a vocabulary that is larger than the tokenizer's;
        None for no such.

    Raises ValueError for no prompt or an empty one, and where learned positions end.
    """
    device = next(model.parameters()).device
    longest = max((len(prompt) for prompt in prompts), default=0)
    if min((len(prompt) for prompt in prompts), default=0) == 0:
        raise ValueError("a prompt must have one token or more")
    limit = model.max_sequence_length
    if limit is not None and longest + num_tokens > limit:
        raise ValueError(f"a prompt of {longest} tokens and {num_tokens} more are beyond the model's {limit} positions")
    text = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    documents = None
    if any(len(prompt) < longest for prompt in prompts):
        documents = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    cache = Cache() if use_cache else None
    new, new_documents = text, documents
    for uniform in islice(_uniform_numbers(len(prompts), seed, device), num_tokens):
        logits = model(new, documents=new_documents, cache=cache, num_logits=1)[:, -1, :num_choices]
        token = sampler.draw(logits, uniform)
        yield token
        new, new_documents = token[:, None], None if documents is None else torch.ones_like(token)[:, None]
        if not use_cache:
            new = text = torch.cat((text, new), dim=1)
            if documents is not None:
                new_documents = documents = torch.cat((documents, new_documents), dim=1)


def _uniform_numbers(num_rows: int, seed: int, device: torch.device) -> Iterator[Tensor]:
    """Float64 numbers in [0, 1) without end, (num_rows) at a time; those of a row depend on the seed and its number."""
    generators = [torch.Generator().manual_seed(_seed_of_row(seed, row)) for row in range(num_rows)]
    while True:
        numbers = [torch.rand(_DRAWN_AT_ONCE, generator=generator, dtype=torch.float64) for generator in generators]
        yield from torch.stack(numbers, dim=1).to(device)


def _seed_of_row(seed: int, row: int) -> int:
    """A seed for each row; neighbouring seeds share none."""
    return (seed * 1_000_003 + row) % 2**63
