"""Rows of tokens that the tokenizer of a run has and that of the weights it starts from has not."""

from collections.abc import Callable, Collection, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ml.distributed import ALONE, World, weights_changed
from ml.distributed.shards import local, shard_of
from ml.models import LanguageModel
from ml.training.state import named_weights

Initialization = Literal["mean", "fresh"]
_VOCABULARY = ("embeddings.token.", "head.")


class NewTokens(NamedTuple):
    """Tokens that are new to the weights that a run starts from.

    Attributes:
        first: Number of tokens of the earlier tokenizer; rows from there on hold nothing that was learned.
        stop: Number of tokens of the new one; further rows pad the vocabulary.
        initialization: "mean" initializes their rows as the mean of the earlier ones, "fresh" as those of a new model.
    """

    first: int
    stop: int
    initialization: Initialization


class Growth:
    """Rows of embedding and head that grow.

    Args:
        saved: The shapes of the weights to start from, by their names in the model.
        read: Reads weights to start from whole, in main memory, by their names in the model.
        model: The model, whose initial rows are kept until `fill`.
        tokens: The new tokens.
        world: The processes that hold the model; a collective call.
    """

    def __init__(
        self,
        saved: Mapping[str, tuple[int, ...]],
        read: Callable[[Collection[str]], Mapping[str, Tensor]],
        model: nn.Module,
        tokens: NewTokens,
        world: World = ALONE,
    ):
        weights, names = named_weights(model), sorted(set().union(*world.gather(_vocabulary_weights(model))))
        rows = {name: (saved[name][0], size) for name, size in names if name in saved}
        self.rows = {name: sizes for name, sizes in rows.items() if sizes[0] <= sizes[1]}
        self._read, self._tokens, self._world = read, tokens, world
        self._before: dict[str, Tensor] = {}
        if self.is_needed:
            own = {name: weights[name] for name in self.rows if name in weights}
            self._before = {name: local(weight).clone() for name, weight in own.items() if not weight.is_meta}

    @property
    def is_needed(self) -> bool:
        """True if there are new tokens, or the model has more rows than the checkpoint."""
        is_new = self._tokens.stop > self._tokens.first
        return bool(self.of_other_shapes) or (is_new and bool(self.rows))

    @property
    def of_other_shapes(self) -> list[str]:
        """Names of the weights with more rows than in the checkpoint."""
        return [name for name, (earlier, now) in self.rows.items() if earlier < now]

    @torch.no_grad()
    def fill(self, model: nn.Module) -> list[str]:
        """Writes the rows of a model whose other weights are loaded; returns the lines that describe them.

        Args:
            model: The model; on the meta device nothing is written.
        """
        weights, tokens = named_weights(model), self._tokens
        read = self._world.together(lambda: self._read(self._before))
        for name, before in self._before.items():
            mine, block = shard_of(weights[name]), local(weights[name])
            rows = mine.of(_rows(read[name], len(weights[name]), tokens)).to(block)
            place = torch.arange(mine.offsets[0], mine.offsets[0] + mine.sizes[0], device=block.device)
            is_new = (place >= tokens.first) & (place < tokens.stop)
            is_set = is_new if tokens.initialization == "mean" else torch.zeros_like(is_new)
            is_set |= ~is_new & (place < len(read[name]))
            block.copy_(torch.where(is_set[:, None], rows, before))
        weights_changed(model)
        return self._described()

    def _described(self) -> list[str]:
        first, stop, initialization = self._tokens
        grown = [
            f"{name} grows from {self.rows[name][0]:,} to {self.rows[name][1]:,} rows" for name in self.of_other_shapes
        ]
        if stop > first:
            kind = "the mean of the earlier rows" if initialization == "mean" else "a fresh initialization"
            grown.append(f"tokens {first:,} to {stop - 1:,} are new and start from {kind} in {', '.join(self.rows)}")
        return grown


def _vocabulary_weights(model: nn.Module) -> list[tuple[str, int]]:
    """Returns the matrices with a row for each token, and their numbers of rows."""
    assert isinstance(model, LanguageModel)
    size = model.vocab_size
    matrices = {name: weight for name, weight in named_weights(model).items() if weight.ndim == 2}
    return [(name, size) for name, weight in matrices.items() if name.startswith(_VOCABULARY) and len(weight) == size]


def _rows(saved: Tensor, size: int, tokens: NewTokens) -> Tensor:
    """Returns `size` rows: those of the checkpoint, and the mean of those of earlier tokens for the new ones."""
    rows = saved.new_zeros((size, *saved.shape[1:]))
    rows[: len(saved)] = saved
    rows[tokens.first : tokens.stop] = saved[: tokens.first].float().mean(dim=0).to(saved.dtype)
    return rows
