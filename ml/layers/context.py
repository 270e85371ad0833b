"""State that the layers of a forward pass share, and the cache of decoding."""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

_Made = TypeVar("_Made")


class Cache:
    """Decoding cache: the state of each mixer and the number of tokens so far.

    One cache belongs to one batch of sequences. Each forward pass adds its tokens to it.
    """

    def __init__(self):
        self.states: dict[nn.Module, Any] = {}
        self.num_tokens = 0
        self.documents: Tensor | None = None  # (B, num_tokens)

    def advance(self, num_tokens: int, documents: Tensor | None) -> None:
        """Records that `num_tokens` more tokens passed through the model."""
        if documents is not None:
            self.documents = self.with_cached(documents)
        self.num_tokens += num_tokens

    def with_cached(self, documents: Tensor) -> Tensor:
        """Documents of the cached tokens followed by those of the new ones, (B, T): (B, num_tokens + T)."""
        if self.num_tokens and self.documents is None:
            raise ValueError("documents cannot be separated after cached tokens without documents")
        return documents if self.documents is None else torch.cat((self.documents, documents), dim=1)


class Auxiliary:
    """Losses and counts that layers add in one forward pass in training.

    A layer that is recomputed in the backward pass adds again, after the sums have been read. Not a dataclass, because
    `fully_shard` copies the dataclasses among the arguments of a module, and what is added to a copy is lost.

    Attributes:
        losses: Scalars, each a mean over the tokens, weighted.
        loads: Of each router, (E) tokens for each expert.
    """

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.loads: list[tuple[nn.Module, Tensor]] = []

    def add(self, router: nn.Module, load: Tensor, losses: list[Tensor]) -> None:
        """Adds the load and the losses of `router` for one batch."""
        self.loads.append((router, load))
        self.losses.extend(losses)


class Context:
    """Inputs of a forward pass that every block and mixer receives unchanged. Not a dataclass; see `Auxiliary`.

    Args:
        positions: Position of each token in its document, integers of shape (T) or (B, T); None is 0, 1, ..., T-1. For
            patches of images, their rows and columns: (T, 2) or (B, T, 2).
        documents: Document index of each token, (B, T). Tokens of a row see each other where it is equal; the tokens
            of a document are contiguous. None: each row is one document.
        cache: State of earlier passes over the same sequences; None for a single pass.
        auxiliary: Collects losses and loads; None where they are not needed.
        num_tokens: Tokens of a row, T, where that is known before the first layer.
    """

    def __init__(
        self,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: Cache | None = None,
        auxiliary: Auxiliary | None = None,
        num_tokens: int | None = None,
    ):
        self.positions = positions
        self.documents = documents
        self.cache = cache
        self.auxiliary = auxiliary
        self.num_tokens = num_tokens
        self._made: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], _Made]) -> _Made:
        """Returns the result of `make`, which is computed once in a pass and shared by all layers.

        Args:
            key: Everything that the result depends on, besides the positions and documents of the pass.
            make: Computes what has no gradient, such as a mask.
        """
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def state(self, mixer: nn.Module) -> Any:
        """State that `mixer` kept in the previous pass; None at the start and outside of decoding."""
        return None if self.cache is None else self.cache.states.get(mixer)

    def keep(self, mixer: nn.Module, state: Any) -> None:
        """Keeps `state` for the next pass when decoding."""
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
        """(B, T), true where a token is the first of its document; None where documents are not separated."""
        stretch = self.previous_documents()
        return None if stretch is None else stretch[:, 1:] != stretch[:, :-1]

    def lengths(self) -> Tensor | None:
        """The largest position of the row of each token plus one, (1) or (B, 1), or of its document, (B, T).

        None where `positions` is None.
        """
        if self.positions is None or self.documents is None:
            return None if self.positions is None else self.positions.amax(-1, keepdim=True) + 1
        number = torch.arange(self.documents.shape[1], device=self.documents.device).expand_as(self.documents)
        goes_on = torch.nn.functional.pad(self.documents[:, 1:] == self.documents[:, :-1], (0, 1))
        last = number.masked_fill(goes_on, self.documents.shape[1]).flip(1).cummin(1).values.flip(1)
        return self.positions.expand_as(self.documents).gather(1, last) + 1

    def later(self, values: Tensor, fill: int = 0) -> Tensor:
        """`values` (B, T, ...) of one position later; `fill` after the last."""
        return torch.cat((values[:, 1:], torch.full_like(values[:, :1], fill)), dim=1)


def places_in_documents(documents: Tensor) -> Tensor:
    """Position of each token in its document: (B, T) -> (B, T)."""
    places = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return places - places.where(starts, 0).cummax(dim=1).values
