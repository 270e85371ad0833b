"""Initial weights of a new run from a Hugging Face folder."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ml.config import configurable
from ml.data.tokenizers import Tokenizer
from ml.distributed import ALONE, World
from ml.interop.errors import InteropError
from ml.interop.families import family_of
from ml.interop.folder import Folder
from ml.interop.placement import Placement, placement, same_tensors
from ml.interop.reading import load_weights
from ml.interop.tensors import Shape
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
