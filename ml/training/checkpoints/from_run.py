"""Start of a run from a checkpoint of another run: from its weights, or as a branch that continues its training."""

import abc
import collections
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from ml.config import configurable, require
from ml.data.tokenizers import Tokenizer
from ml.distributed import ALONE, World
from ml.models.adapters import adapter_weights
from ml.training.checkpoints.initial_weights import InitialWeights, StartingPoint
from ml.training.checkpoints.new_tokens import Growth, Initialization, NewTokens
from ml.training.checkpoints.reference import CheckpointReference, CheckpointSource
from ml.training.checkpoints.state_files import read_state, read_whole_counts
from ml.training.checkpoints.weight_files import LoadedWeights, read_weights, read_whole, saved_shapes
from ml.training.run_data import RunData
from ml.training.run_folder import RunFolder
from ml.training.run_tokenizer import read_run_tokenizer
from ml.training.state import BEST_VALIDATION, TrainState

_MOST_NAMES = 5  # in a message
_AT_START = "the data starts at its first sequence"


@configurable(neutral=["path"])
class FromRun(InitialWeights):
    """Starts a new run from a checkpoint of another one, `--init_from`.

    A run records step and hash, and finds the weights again by the hash, also in a folder that was moved.

    Args:
        path: Folder of the other run.
        step: Step of the checkpoint; None for the newest valid one, which is recorded.
        sha256: Hash of the tensors of the checkpoint; None for any, which is recorded.
        state: `'weights'`, their running `'average'`, or `'all'` for a branch: weights, optimizer, averages and data
            position, continued with the next step.
        may_differ: Patterns of the names of weights that may be missing or have another shape, such as `'head.*'`.
        data_position: `'continue'` reads on after the sequences that the other run has consumed, if the data and its
            order are the same; other data start at the first sequence. `'start'` starts there in any case.
        new_tokens: Initialization of the rows of special tokens that the tokenizer of the other run has not: the
            `'mean'` of the earlier rows, or `'fresh'` as in a new model.
    """

    def __init__(
        self,
        *,
        path: str,
        step: int | None = None,
        sha256: str | None = None,
        state: Literal["weights", "average", "all"] = "weights",
        may_differ: Sequence[str] = (),
        data_position: Literal["continue", "start"] = "continue",
        new_tokens: Initialization = "mean",
    ):
        require(step is None or step > 0, "step", f"must be positive, not {step}")
        is_whole = state == "all"
        require(not (is_whole and may_differ), "may_differ", "does not go with FromRun.state = 'all', the same model")
        self.path = path
        self.source = CheckpointSource(CheckpointReference(Path(path), step, sha256))
        self.state = state
        self.may_differ = tuple(may_differ)
        self.data_continues = data_position == "continue"
        self.new_tokens: Initialization = new_tokens

    @property
    def run(self) -> str:
        return self.path

    def tokenizer(self) -> Tokenizer | None:
        return self._tokenizer

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer | None:
        return read_run_tokenizer(Path(self.path))

    def pins(self, recorded: Mapping[str, Any]) -> dict[str, Any]:
        return self.source.pins(recorded, recorded.get("path"))

    def adopt(self, earlier: InitialWeights) -> None:
        if isinstance(earlier, FromRun):
            self.source.adopt(earlier.source)

    def open(self, world: World = ALONE) -> "CheckpointStart":
        kind = BranchStart if self.state == "all" else WeightStart
        return kind(self, world)


class CheckpointStart(StartingPoint):
    """A checkpoint of another run, to start from; held until it is loaded.

    Args:
        settings: The settings.
        world: The processes of the run; a collective call.
    """

    def __init__(self, settings: FromRun, world: World = ALONE):
        self.settings = settings
        self.checkpoint = world.first(settings.source.find)
        self.place = f"the run {settings.path}"

    def load(self, state: TrainState, data: RunData, say: Callable[[str], None]) -> None:
        try:
            for line in self._load(state, data):
                say(line)
        finally:
            self.settings.source.release()

    @abc.abstractmethod
    def _load(self, state: TrainState, data: RunData) -> list[str]:
        """Loads what the settings ask for; returns the lines that describe it."""


class WeightStart(CheckpointStart):
    """The start of a new run from weights alone."""

    _new_tokens: NewTokens | None = None

    def fit_tokenizer(self, tokenizer: Tokenizer, earlier: Tokenizer) -> None:
        super().fit_tokenizer(tokenizer, earlier)
        if tokenizer.vocab_size >= earlier.vocab_size:
            self._new_tokens = NewTokens(earlier.vocab_size, tokenizer.vocab_size, self.settings.new_tokens)

    def check(self, model: nn.Module, num_steps: int, world: World = ALONE) -> list[str]:
        return self._read(model, world)

    def _load(self, state: TrainState, data: RunData) -> list[str]:
        world = state.layout.world
        lines = self._read(state.model, world)
        if state.weight_average is not None:
            state.weight_average.restart()
        state.sequences, line = world.first(lambda: self._position(data))
        return [*lines, line]

    def kept_files(self) -> dict[str, bytes]:
        return RunFolder(self.checkpoint.path.parent.parent).imported_files()

    def _read(self, model: nn.Module, world: World) -> list[str]:
        """Loads the weights into a model, unless it is on the meta device; returns the lines that describe them."""
        average = self.settings.state == "average"
        names, may_differ, path = adapter_weights(model), list(self.settings.may_differ), self.checkpoint.path
        growth = self._growth(model, average, world)
        may_differ += [] if growth is None else growth.of_other_shapes
        loaded = read_weights(path, model, names, may_differ, average=average, world=world)
        grown = [] if growth is None or not growth.is_needed else growth.fill(model)
        kept = [name for name in loaded.kept if growth is None or name not in growth.rows]
        what = "the average of the weights" if average else "the weights"
        return [f"starting from {what} of {self.checkpoint}", *grown, *_described(loaded._replace(kept=kept))]

    def _growth(self, model: nn.Module, average: bool, world: World) -> Growth | None:
        if self._new_tokens is None:
            return None
        path = self.checkpoint.path
        saved = world.together(lambda: saved_shapes(path, average=average))
        read = functools.partial(read_whole, path, average=average)
        return Growth({name: one.shape for name, one in saved.items()}, read, model, self._new_tokens, world)

    def _position(self, data: RunData) -> tuple[int, str]:
        """Returns the sequences of the data that count as consumed, and the line that describes them."""
        if not self.settings.data_continues:
            return 0, f"{_AT_START} (FromRun.data_position = 'start')"
        counts = read_whole_counts(self.checkpoint.path)
        if counts["data_sha256"] != data.sha256:
            return 0, f"{_AT_START}: it is not the data of that run"
        if counts.get("order_sha256") not in (None, data.order_sha256()):
            return 0, f"{_AT_START}: it is the data of that run in another order or sequence length"
        number = counts["sequences"]
        return number, (
            f"the data continues after the {number:,} sequences that run has consumed; FromRun.data_position = 'start' "
            "reads them again"
        )


class BranchStart(CheckpointStart):
    """The continuation of the training of another run in a new folder."""

    def __init__(self, settings: FromRun, world: World = ALONE):
        super().__init__(settings, world)
        self.continues = self.checkpoint

    def check(self, model: nn.Module, num_steps: int, world: World = ALONE) -> list[str]:
        read_weights(self.checkpoint.path, model, world=world)
        return [f"continuing the training of {self.checkpoint}"]

    def _load(self, state: TrainState, data: RunData) -> list[str]:
        read_state(self.checkpoint.path, state, data.sha256)
        if BEST_VALIDATION in state.lowest:  # its checkpoint is in the other folder
            state.lowest[BEST_VALIDATION].reset()
        position = f"the data continues after {state.sequences:,} sequences"
        if not self.settings.data_continues:
            state.sequences, position = 0, f"{_AT_START} (FromRun.data_position = 'start')"
        return [f"continuing the training of {self.checkpoint} with step {state.step + 1}; {position}"]


def _described(loaded: LoadedWeights) -> list[str]:
    lines = []
    for (there, here), number in collections.Counter(loaded.converted.values()).items():
        lines.append(f"{number} weights are converted from {_name(there)} to {_name(here)}")
    if kept := loaded.kept:
        shown = ", ".join(kept[:_MOST_NAMES]) + (", ..." if len(kept) > _MOST_NAMES else "")
        lines.append(f"{len(kept)} weights keep their initialization: {shown}")
    return lines


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
