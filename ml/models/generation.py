"""Generation of text from a model, token by token."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from ml.layers.context import Cache
from ml.layers.rotary import RotaryEmbedding
from ml.models.language_model import LanguageModel
from ml.models.sampling import Sampler

_DRAWN_AT_ONCE = 256


def reason_for_full_pass(model: LanguageModel) -> str | None:
    """Reason for a full forward pass for every token; None where it decodes from a cache."""
    obstacle = model.obstacle_to_decoding
    return None if obstacle is None else f"every token takes the full forward pass, which is slow: {obstacle}"


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    sampler: Sampler,
    seed: int = 0,
    *,
    num_choices: int | None = None,
    use_cache: bool | None = None,
    shared: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Tensor]:
    """Yields the next token of every prompt, (B), `num_tokens` times.

    The tokens drawn for a prompt depend on the seed and its index alone, not on the other prompts. Shorter prompts are
    padded on the left, which the rest does not see; where the model does not separate documents,
    prompts of one length go through it together.

    Args:
        model: In evaluation mode.
        prompts: Tokens, at least one for each prompt.
        num_tokens: Tokens to draw.
        sampler: How a token is chosen.
        seed: Of the draws.
        num_choices: Tokens from this one on are never drawn, such as those of a vocabulary that is larger than the
            tokenizer's; None for no such.
        use_cache: Whether each token is decoded from the states of those before it. False passes the whole text through
            the model for every token, which is slow. None uses the cache where every mixer decodes from it.
        shared: Called with each drawn token (B) where several processes generate with a model whose weights are
            divided among them; returns the token that all of them take. None for a single process.

    Raises:
        ValueError: There is no prompt or an empty one, the text would be longer than the model takes, or a layer does
            not decode from a cache and `use_cache` is True.
    """
    # Weights that are divided among processes are gathered into memory that training uses again.
    without_gradients = torch.inference_mode if shared is None else torch.no_grad
    arguments = (model, prompts, num_tokens, sampler, seed, num_choices, use_cache, shared or _own)
    return without_gradients()(_generate)(*arguments)


def _own(token: Tensor) -> Tensor:
    return token


def _generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    sampler: Sampler,
    seed: int,
    num_choices: int | None,
    use_cache: bool | None,
    shared: Callable[[Tensor], Tensor],
) -> Iterator[Tensor]:
    device = next(model.parameters()).device
    lengths = [len(prompt) for prompt in prompts]
    if min(lengths, default=0) == 0:
        raise ValueError("a prompt must have one token or more")
    limit = model.max_sequence_length
    if limit is not None and max(lengths) + num_tokens > limit:
        raise ValueError(
            f"a prompt of {max(lengths)} tokens and {num_tokens} more are beyond the model's {limit} positions"
        )
    if use_cache is None:
        use_cache = model.obstacle_to_decoding is None
    groups = [list(range(len(prompts)))]
    if model.obstacle_to_documents is not None:
        groups = [[row for row, other in enumerate(lengths) if other == length] for length in sorted(set(lengths))]
    texts = [_Texts(model, [prompts[row] for row in rows], use_cache, device) for rows in groups]
    order = torch.tensor([row for rows in groups for row in rows], device=device)
    place = order.argsort()
    for uniform in islice(_uniform_numbers(len(prompts), seed, device), num_tokens):
        logits = torch.cat([part.next_logits() for part in texts])[place, :num_choices]  # (B, V)
        token = shared(sampler.draw(logits, uniform))
        yield token
        for part, new in zip(texts, token[order].split([len(rows) for rows in groups]), strict=True):
            part.append(new)


class _Texts:
    """Texts that grow together by one token at a time."""

    def __init__(self, model: LanguageModel, prompts: Sequence[Sequence[int]], use_cache: bool, device: torch.device):
        longest = max(map(len, prompts))
        self._model = model
        self._cache = Cache() if use_cache else None
        self._lengths = [len(prompt) for prompt in prompts]
        self._switches = _switches(model)
        self._tokens = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)  # (B, T)
        self._documents = None
        if any(len(prompt) < longest for prompt in prompts):
            documents = [[-1] * (longest - len(p)) + [0] * len(p) for p in prompts]
            self._documents = torch.tensor(documents, device=device)
        self._earlier, self._earlier_documents = self._tokens, self._documents

    def next_logits(self) -> Tensor:
        """(B, V), of the token after each text."""
        return self._model(self._tokens, documents=self._documents, cache=self._cache, num_logits=1)[:, -1]

    def append(self, token: Tensor) -> None:
        """Adds a token (B) to the texts. With a cache only the new ones go through the model next."""
        self._lengths = [length + 1 for length in self._lengths]
        new, documents = token[:, None], None if self._documents is None else torch.zeros_like(token)[:, None]
        if self._cache is None or self._switches:
            self._earlier = torch.cat((self._earlier, new), dim=1)
            if self._earlier_documents is not None and documents is not None:
                self._earlier_documents = torch.cat((self._earlier_documents, documents), dim=1)
        is_passed = any(length - 1 in self._switches for length in self._lengths)
        if self._cache is None or is_passed:
            new, documents = self._earlier, self._earlier_documents
            self._cache = None if self._cache is None else Cache()
        self._tokens, self._documents = new, documents


def _switches(model: LanguageModel) -> set[int]:
    """Lengths above which a rotary embedding rotates all positions otherwise, so that cached keys are wrong."""
    rotaries = [module for module in model.modules() if isinstance(module, RotaryEmbedding)]
    return {rotary.switch_length for rotary in rotaries if rotary.switch_length is not None}


def _uniform_numbers(num_rows: int, seed: int, device: torch.device) -> Iterator[Tensor]:
    """Float64 numbers in [0, 1) without end, (num_rows) at a time; those of a row depend on the seed and its number."""
    generators = [torch.Generator().manual_seed(_seed_of_row(seed, row)) for row in range(num_rows)]
    while True:
        numbers = [torch.rand(_DRAWN_AT_ONCE, generator=generator, dtype=torch.float64) for generator in generators]
        yield from torch.stack(numbers, dim=1).to(device)


def _seed_of_row(seed: int, row: int) -> int:
    """A seed for each row; adjacent seeds share none."""
    return (seed * 1_000_003 + row) % 2**63
