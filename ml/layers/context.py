"""State that the layers of a forward pass share, and the cache of decoding."""

import copy
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from ml.layers.copying import ModuleCopier
from ml.targets import IGNORED

_Made = TypeVar("_Made")


class Cache:
    """Decoding cache: the state of each mixer and the number of tokens so far.

    One cache belongs to one batch of sequences. Each forward pass adds its tokens to it. States are named after the
    mixers' places in the model, so a cache goes with any copy of the model, and a copy of the cache (`copy.deepcopy`,
    `pickle`) continues from where it was taken, independently of the original.

    Attributes:
        states: State of each mixer, by the path of the mixer in the model.
        num_tokens: Number of tokens of each sequence so far.
        documents: (B, num_tokens), the document indices of those tokens; None where documents are not separated.
    """

    def __init__(self):
        self.states: dict[str, Any] = {}
        self.num_tokens = 0
        self.documents: Tensor | None = None
        self._num_sequences: int | None = None
        self._is_behind = False

    def __copy__(self) -> Self:
        return self.__deepcopy__({})

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        make = ModuleCopier().copies_of(vars(self))  # states may have a gradient, which `copy` refuses
        if make is None:
            raise TypeError("a state in the cache cannot be copied")
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        vars(copied).update(make())
        return copied

    def start(self, num_sequences: int) -> None:
        """Begins a pass over new tokens, which `advance` ends.

        Args:
            num_sequences: Number of sequences in the batch.

        Raises:
            ValueError: The cache is that of another number of sequences, or its previous pass did not end.
        """
        if self._is_behind:
            raise ValueError(
                "the previous pass with this cache failed, and some mixers kept its tokens: take a new one"
            )
        if self._num_sequences not in (None, num_sequences):
            raise ValueError(f"the cache has {self._num_sequences} sequences, and the new tokens have {num_sequences}")
        self._num_sequences, self._is_behind = num_sequences, True

    def advance(self, num_tokens: int, documents: Tensor | None) -> None:
        """Records that `num_tokens` more tokens passed through the model."""
        if documents is not None:
            self.documents = self.with_cached(documents)
        self.num_tokens += num_tokens
        self._is_behind = False

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
        padding: (B, T), true where nothing depends on a token: experts do not process it, and it counts nowhere.
        places: Paths of the mixers of the model, which name their states in the cache. Others are numbered.
    """

    def __init__(
        self,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: Cache | None = None,
        auxiliary: Auxiliary | None = None,
        num_tokens: int | None = None,
        padding: Tensor | None = None,
        places: Mapping[nn.Module, str] | None = None,
    ):
        self.positions = positions
        self.documents = documents
        self.cache = cache
        self.auxiliary = auxiliary
        self.num_tokens = num_tokens
        self.padding = padding
        self._places = {} if places is None else places
        self._numbered: dict[nn.Module, str] = {}
        self._made: dict[Hashable, Any] = {}
        self._of_pass: Self | None = None

    def once(self, key: Hashable, make: Callable[[], _Made]) -> _Made:
        """Returns the result of `make`, which is computed once in a pass and shared by all layers.

        Args:
            key: Everything that the result depends on, besides the positions and documents of the pass.
            make: Computes what has no gradient, such as a mask.
        """
        if key not in self._made:
            self._made[key] = make() if self._of_pass is None else self._of_pass.once(key, make)
        return self._made[key]

    def of_block(self) -> Self:
        """The same context for one block, which holds only those results of `once` that the block asks for.

        `torch.compile` guards the number of all results at hand, which grows from block to block.
        """
        other = copy.copy(self)
        other._made, other._of_pass = {}, self
        return other

    def without_padding(self) -> Self:
        """The same context for a layer that gets other rows, none of which is padding."""
        if self.padding is None:
            return self
        other = copy.copy(self)
        other.padding = None
        return other

    def state(self, mixer: nn.Module) -> Any:
        """State that `mixer` kept in the previous pass; None at the start and outside of decoding.

        Raises:
            ValueError: The cache has tokens, and no state of this mixer: it is that of another model.
        """
        if self.cache is None:
            return None
        place = self._place_of(mixer)
        if self.cache.num_tokens and place not in self.cache.states:
            raise ValueError(
                f"{place} ({type(mixer).__name__}) finds no state in a cache of {self.cache.num_tokens} tokens: the "
                "cache was filled by another model"
            )
        return self.cache.states.get(place)

    def keep(self, mixer: nn.Module, state: Any) -> None:
        """Keeps `state` for the next pass when decoding."""
        if self.cache is not None:
            self.cache.states[self._place_of(mixer)] = state

    def _place_of(self, mixer: nn.Module) -> str:
        """Path of a mixer in the model; outside of a model its number, in the order of use."""
        if mixer in self._places:
            return self._places[mixer]
        return self._numbered.setdefault(mixer, f"mixer {len(self._numbered)}")

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


def padding_of(documents: Tensor | None = None, targets: Tensor | None = None) -> Tensor | None:
    """Padding of a batch: positions after the last target of a row, and those of no document.

    Args:
        documents: (B, T), negative for padding.
        targets: (B, T), `IGNORED` where a token has no loss.

    Returns:
        (B, T), true for padding; None where nothing can tell it.
    """
    padding = None if documents is None else documents < 0
    if targets is None:
        return padding
    following = (targets != IGNORED).flip(1).cummax(1).values.flip(1)  # a target at this position or later
    return ~following if padding is None else padding | ~following


def places_in_documents(documents: Tensor) -> Tensor:
    """Position of each token in its document: (B, T) -> (B, T)."""
    places = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return places - places.where(starts, 0).cummax(dim=1).values
