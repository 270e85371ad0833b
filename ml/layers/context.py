"""What the layers of one forward pass share, and what they keep from one pass to the next while decoding."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


class Cache:
    """What decoding goes on from: the state of each mixer, and how far the sequences have come.

    One cache belongs to one batch of sequences. Each forward pass adds its tokens to it.
    """

    def __init__(self):
        self.states: dict[nn.Module, Any] = {}
        self.num_tokens = 0
        self.documents: Tensor | None = None  # (B, num_tokens)

    def advance(self, num_tokens: int, documents: Tensor | None) -> None:
        """Notes that `num_tokens` more tokens went through the model."""
        if documents is not None:
            self.documents = self.with_cached(documents)
        self.num_tokens += num_tokens

    def with_cached(self, documents: Tensor) -> Tensor:
        """The documents (B, T) of new tokens behind those of the cached ones: (B, num_tokens + T)."""
        if self.num_tokens and self.documents is None:
            raise ValueError("documents are told apart after tokens of which none were")
        return documents if self.documents is None else torch.cat((self.documents, documents), dim=1)


@dataclass
class Auxiliary:
    """What layers add to the loss, and what they count, in one forward pass in training.

    A layer that is run again for its gradient adds again; by then the sums have been taken.
    """

    losses: list[Tensor] = field(default_factory=list)  # scalars, each a mean over the tokens, weighted
    loads: list[tuple[nn.Module, Tensor]] = field(default_factory=list)  # of a router: (E) tokens for each expert

    def add(self, router: nn.Module, load: Tensor, losses: list[Tensor]) -> None:
        """Adds what `router` did to one batch."""
        self.loads.append((router, load))
        self.losses.extend(losses)


@dataclass(frozen=True)
class Context:
    """Handed unchanged to every block and mixer of a forward pass.

    positions: the place of each token in its document, integers of shape (T) or (B, T); None is 0, 1, ..., T-1. Of the
        patches of images, their rows and columns: (T, 2) or (B, T, 2).
    documents: a number for each token, (B, T): tokens of a row see each other where it is equal, and a document is
        never interrupted by another. None: each row is one document.
    cache: what earlier passes left of the same sequences; None where a pass stands alone.
    auxiliary: takes what is added to the loss; None where nobody asks.
    """

    positions: Tensor | None = None
    documents: Tensor | None = None
    cache: Cache | None = None
    auxiliary: Auxiliary | None = None

    def state(self, mixer: nn.Module) -> Any:
        """What `mixer` kept in the pass before this one; None at the start and outside of decoding."""
        return None if self.cache is None else self.cache.states.get(mixer)

    def keep(self, mixer: nn.Module, state: Any) -> None:
        """Keeps `state` for the next pass, if there is to be one."""
        if self.cache is not None:
            self.cache.states[mixer] = state

    def all_documents(self) -> Tensor | None:
        """`documents` with those of the cached tokens before them: (B, S + T)."""
        if self.documents is None or self.cache is None:
            return self.documents
        return self.cache.with_cached(self.documents)

    def previous_documents(self, reach: int = 1) -> Tensor | None:
        """The documents of `reach` tokens before each token, (B, T + reach) in one stretch; -1 before the first."""
        documents = self.all_documents()
        if documents is None or self.documents is None:
            return None
        documents = torch.nn.functional.pad(documents, (reach, 0), value=-1)
        return documents[:, documents.shape[1] - self.documents.shape[1] - reach :]

    def document_starts(self) -> Tensor | None:
        """(B, T), true where a token is the first of its document; None where documents are not told apart."""
        stretch = self.previous_documents()
        return None if stretch is None else stretch[:, 1:] != stretch[:, :-1]


def places_in_documents(documents: Tensor) -> Tensor:
    """How many tokens of its document stand before each token: (B, T) -> (B, T)."""
    places = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return places - places.where(starts, 0).cummax(dim=1).values
