"""Initial weights of a new run from a Hugging Face folder."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ml.config import configurable
from ml.data.tokenizers import Tokenizer
from ml.distributed import ALONE, World, weights_changed
from ml.distributed.shards import Shard, local, shard_of
from ml.interop.errors import InteropError
from ml.interop.families import family_of
from ml.interop.folder import Folder
from ml.interop.placement import Placement, placement, same_tensors
from ml.interop.stored_tensors import DTYPES, StoredTensor
from ml.interop.tensors import Placed, Same, Shape
from ml.models.adapters import adapter_weights
from ml.training.checkpoints.initial_weights import InitialWeights, StartingPoint
from ml.training.checkpoints.new_tokens import Growth, Initialization, NewTokens
from ml.training.run_data import RunData
from ml.training.state import TrainState, named_weights

_SHOWN = 12  # digits of a hash in a message
_MOST_NAMES = 5  # in a message


@configurable(neutral=["path"])
class FromHuggingFace(InitialWeights):
    """Starts a new run from the weights of a Hugging Face folder, `--init_from`.

    A run records the hash of the weights, and finds them again by it, also in a folder that was moved.

    Args:
        path: The folder.
        sha256: Hash of the tensors; None for any, which is recorded.
        may_differ: Patterns of the names of weights that may be missing or have another shape, such as `'head.*'`.
        new_tokens: Initialization of the rows of special tokens that the tokenizer of the folder has not: the
            `'mean'` of the earlier rows, or `'fresh'` as in a new model.
    """

    def __init__(
        self,
        *,
        path: str,
        sha256: str | None = None,
        may_differ: Sequence[str] = (),
        new_tokens: Initialization = "mean",
    ):
        self.path = path
        self.sha256 = sha256
        self.may_differ = tuple(may_differ)
        self.new_tokens: Initialization = new_tokens
        self._found: str | None = None  # the hash of the tensors, once they are read

    def pins(self, recorded: Mapping[str, Any]) -> dict[str, Any]:
        if self.sha256 is not None:
            return {}
        known = recorded.get("sha256")
        if known is not None and recorded.get("path") == self.path:
            return {"sha256": known}
        self._found = Folder(Path(self.path)).sha256()
        return {"sha256": self._found}

    def adopt(self, earlier: InitialWeights) -> None:
        if isinstance(earlier, FromHuggingFace) and earlier.path == self.path:
            self._found = earlier._found

    def tokenizer(self) -> Tokenizer | None:
        """Returns the tokenizer of the folder, for data without its own; None if it has none that can be read."""
        return self._tokenizer

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer | None:
        try:
            return Folder(Path(self.path)).tokenizer()
        except InteropError:  # `open` raises it again; a run that is resumed no longer needs the folder
            return None

    def open(self, world: World = ALONE) -> "HuggingFaceStart":
        folder = world.together(lambda: Folder(Path(self.path)))
        found = world.first(lambda: folder.sha256() if self._found is None else self._found)
        if self.sha256 not in (None, found):
            raise InteropError(
                f"the weights in {self.path} are not those of this run: their SHA-256 is {found[:_SHOWN]}, "
                f"expected {str(self.sha256)[:_SHOWN]}"
            )
        return HuggingFaceStart(folder, found, self.may_differ, self.new_tokens)


class HuggingFaceStart(StartingPoint):
    """The weights of a Hugging Face folder, to start from."""

    def __init__(
        self, folder: Folder, sha256: str, may_differ: Sequence[str] = (), new_tokens: Initialization = "mean"
    ):
        self.folder = folder
        self.place = f"the folder {folder.path}"
        self.sha256 = sha256
        self.may_differ = may_differ
        self._initialization: Initialization = new_tokens
        self._new_tokens: NewTokens | None = None

    def fit_tokenizer(self, tokenizer: Tokenizer, earlier: Tokenizer) -> None:
        super().fit_tokenizer(tokenizer, earlier)
        if tokenizer.vocab_size >= earlier.vocab_size:
            self._new_tokens = NewTokens(earlier.vocab_size, tokenizer.vocab_size, self._initialization)

    def check(self, model: nn.Module, num_steps: int, world: World = ALONE) -> list[str]:
        growth = self._growth(model, world)
        return self._lines(self._placement(model, world, growth), model, growth)

    def given(self, model: nn.Module) -> frozenset[str]:
        growth = self._growth(model, ALONE)
        return self._placement(model, ALONE, growth).given - frozenset(() if growth is None else growth.rows)

    def load(self, state: TrainState, data: RunData, say: Callable[[str], None]) -> None:
        world, model = state.layout.world, state.model
        growth = self._growth(model, world)
        found = self._placement(model, world, growth)
        world.together(lambda: load_weights(found, model, self.folder.config))
        lines = self._lines(found, model, growth)
        if state.weight_average is not None:
            state.weight_average.restart()
        for line in lines:
            say(line)

    def kept_files(self) -> dict[str, bytes]:
        return self.folder.kept_files()

    def _growth(self, model: nn.Module, world: World) -> Growth | None:
        """Keeps the initial rows of new tokens; None where no tokenizer tells which are new."""
        if self._new_tokens is None:
            return None
        names: set[str] = set().union(*world.gather(set(named_weights(model))))
        config = self.folder.config
        saved = world.together(lambda: same_tensors(family_of(config), config, self.folder.tensors, names))

        def read(names: Iterable[str]) -> dict[str, Tensor]:
            return {name: saved[name].read() for name in names}

        shapes = {name: stored.shape for name, stored in saved.items()}
        growth = Growth(shapes, read, model, self._new_tokens, world)
        return growth if growth.is_needed else None

    def _placement(self, model: nn.Module, world: World, growth: Growth | None = None) -> Placement:
        mine = {name: tuple(tensor.shape) for name, tensor in named_weights(model).items()}
        shapes: dict[str, Shape] = {}
        for others in world.gather(mine):
            shapes |= others
        lacking: set[str] = set().union(*world.gather(set(adapter_weights(model))))
        config = self.folder.config
        may_differ = [*self.may_differ, *([] if growth is None else growth.of_other_shapes)]
        return world.together(
            lambda: placement(family_of(config), config, self.folder.tensors, shapes, lacking, may_differ)
        )

    def _lines(self, found: Placement, model: nn.Module, growth: Growth | None) -> list[str]:
        """Writes the rows of new tokens into a model that is loaded; returns the lines that describe the start."""
        lines = [f"starting from the weights of {self.folder.path} (SHA-256 {self.sha256[:_SHOWN]})"]
        grown = {} if growth is None else growth.rows
        lines += [] if growth is None else growth.fill(model)
        fresh = [name for name in found.fresh if name not in grown]
        for what, names in {"weights keep their initialization": fresh, "tensors are not read": found.ignored}.items():
            if names:
                shown = ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")
                lines.append(f"{len(names)} {what}: {shown}")
        return lines


def read_folder(folder: Folder, model: nn.Module) -> None:
    """Reads the weights of a folder into its model, in one process.

    Raises:
        InteropError: They do not fit, or are damaged.
    """
    start = HuggingFaceStart(folder, "")
    load_weights(start._placement(model, ALONE), model, folder.config)


@torch.no_grad()
def load_weights(found: Placement, model: nn.Module, config: Mapping[str, Any]) -> None:
    """Reads the tensors of a checkpoint into a model, one after the other; each process what it holds.

    Args:
        found: The tensors and their places.
        model: The model, changed in place; its weights keep their dtypes.
        config: The fields of config.json.

    Raises:
        InteropError: A file is damaged, or tied weights differ.
    """
    for first, second in found.equal:
        if first.shape != second.shape or not torch.equal(first.read(), second.read()):
            raise InteropError("config.json#tie_word_embeddings is true, and the checkpoint has another head")
    weights = named_weights(model)
    for stored, one in sorted(found.read, key=lambda item: (str(item[0].file), item[0].offset)):
        targets = [weights.get(name) for name in one.ours]
        if any(target is not None for target in targets):
            _read(stored, one, targets, config)
    weights_changed(model)


def _read(stored: StoredTensor, one: Placed, targets: Sequence[Tensor | None], config: Mapping[str, Any]) -> None:
    only = targets[0]
    if isinstance(one.layout, Same) and only is not None:
        _read_rows(stored, only)
        return
    shapes = [() if target is None else tuple(target.shape) for target in targets]
    if any(target is None for target in targets):
        shapes = _known_shapes(stored, one, shapes)
    for target, piece in zip(targets, one.layout.split(stored.read(), shapes, config), strict=True):
        if target is not None:
            _copy_share(piece, target, *one.layout.share)


def _copy_share(piece: Tensor, target: Tensor, index: int, count: int) -> None:
    """Copies an equal share of the rows of a tensor into the part of it that this process holds."""
    if count == 1:
        local(target).copy_(shard_of(target).of(piece))
        return
    place, rows = share_in_shard(shard_of(target), index, piece.shape[0])
    place.of(local(target)).copy_(rows.of(piece))


def share_in_shard(shard: Shard, index: int, num_rows: int) -> tuple[Shard, Shard]:
    """Returns the common rows of a shard and a share of a tensor, as a block of either; both may be empty.

    Args:
        shard: A block of the tensor.
        index: Index of the share.
        num_rows: Rows of a share.
    """
    first, start, size = index * num_rows, shard.offsets[0], shard.sizes[0]
    low = min(max(first, start), start + size)
    high = max(low, min(first + num_rows, start + size))
    sizes = (high - low, *shard.sizes[1:])
    others = shard.offsets[1:]
    return Shard((low - start, *(0 for _ in others)), sizes), Shard((low - first, *others), sizes)


def _known_shapes(stored: StoredTensor, one: Placed, shapes: list[Shape]) -> list[Shape]:
    """Replaces the shapes of tensors that another process holds."""
    assert len({shape for shape in shapes if shape}) == 1, f"{stored} is divided among processes in unequal parts"
    known = next(shape for shape in shapes if shape)
    return [shape or known for shape in shapes]


def _read_rows(stored: StoredTensor, target: Tensor) -> None:
    """Reads the rows of one tensor that this process holds, into its memory where the dtype allows."""
    shard, there = shard_of(target), local(target)
    if not there.numel():
        return
    is_whole_rows = shard.sizes[1:] == stored.shape[1:]
    dtype = DTYPES[stored.dtype]
    first = shard.offsets[0] if shard.offsets else 0
    if is_whole_rows and there.dtype == dtype and there.is_contiguous() and there.device.type == "cpu":
        stored.read_rows(there, first)
    elif is_whole_rows:
        rows = torch.empty(shard.sizes, dtype=dtype, device="cpu")
        stored.read_rows(rows, first)
        there.copy_(rows)
    else:
        there.copy_(shard.of(stored.read()))
