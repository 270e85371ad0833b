"""A Hugging Face folder, opened as a run that has taken no step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ml.building import load
from ml.config import Config, ImportedValue
from ml.errors import ArgumentError, UserError
from ml.runs.evaluation import Evaluation
from ml.runs.generation import Generated, Generation
from ml.runs.init_flags import init_statements
from ml.runs.run import Run

if TYPE_CHECKING:
    import torch

    from ml.data.chat.encoding import ChatFormat
    from ml.data.chat.template import Chat
    from ml.interop.folder import Folder
    from ml.models import LanguageModel
    from ml.training.checkpoints.policy import StepName

_Used = TypeVar("_Used")
_RECIPE = "recipes/finetune.gin"
_LONGEST = 2048  # tokens of a window of an evaluation; the positions of a model may be a million


class PretrainedFolder(Run):
    """A Hugging Face folder, open for generating text, evaluating and exporting, without training before.

    Its configuration is that of a run of `recipes/finetune.gin` that starts from it.

    Args:
        path: The folder.

    Raises:
        UserError: There is no such folder.
    """

    def __init__(self, path: str | Path):
        super().__init__(path)

    def _require_files(self) -> None:
        _ = self._folder

    @functools.cached_property
    def _folder(self) -> Folder:
        from ml.interop.folder import Folder

        return Folder(self.path)

    @functools.cached_property
    def config(self) -> Config:
        """The configuration of a run that starts from the folder."""
        from ml.interop.expressing import model_of

        values = self.imported_values()
        lengths = (self._folder.config.get("max_position_embeddings"), model_of(values).max_sequence_length)
        length = min([_LONGEST, *(length for length in lengths if type(length) is int and length > 0)])
        return load(
            _RECIPE,
            [f"Trainer.sequence_length = {length}"],
            imported=values,
            flags=init_statements(self.path, None, None, (), hugging_face=True),
        )

    def imported_values(self) -> list[ImportedValue]:
        """The model of the folder, as the imported layer of a run that starts from it."""
        from ml.interop.importing import imported_values

        return imported_values(self._folder)

    @property
    def is_finished(self) -> bool:
        """True: there is nothing to resume."""
        return True

    def checkpoint(self, step: StepName = None) -> Path:
        """Raises UserError: a Hugging Face folder has no checkpoints."""
        raise UserError(f"{self.path} is a Hugging Face folder, which has no checkpoints")

    def generate_with(self, settings: Generation, prompts: Sequence[str] | Sequence[Chat], **options: Any) -> Generated:
        """Generates text as a run does; conversations need a chat template in the folder."""
        self._require_tokenizer()
        if any(not isinstance(prompt, str) for prompt in prompts) and not self._folder.has_chat_template:
            raise UserError(f"{self.path} has no chat template: continue a text, or fine-tune it on conversations")
        return super().generate_with(settings, prompts, **options)

    def evaluate_with(self, settings: Evaluation, **options: Any) -> dict[str, Any]:
        """Evaluates the model as a run does, on texts or tasks."""
        self._require_tokenizer()
        if not settings.data and not settings.tasks:
            raise ArgumentError(
                "%s is a Hugging Face folder without validation sets: name texts with {data} or tasks with {tasks}",
                self.path,
            )
        return super().evaluate_with(settings, **options)

    def _require_tokenizer(self) -> None:
        if self._folder.tokenizer() is None:
            raise UserError(f"{self.path} has neither a tokenizer.json nor a tokenizer.model, and text has no tokens")

    def export(self, file: str | Path, step: StepName = None, *, average: bool = False) -> int:
        """Writes the weights alone, under their names here, to a safetensors file; returns the number of tensors."""
        from ml.training.checkpoints.weight_files import write_weights
        from ml.training.state import named_weights

        weights = named_weights(self.build(step, average=average))
        write_weights(Path(file), weights, tokenizer=self.tokenizer.identity)
        return len(weights)

    def build_checkpoint(
        self, checkpoint: Path, device: str | torch.device = "cpu", *, average: bool = False
    ) -> LanguageModel:
        """Builds the model with the weights of the folder."""
        from ml.interop.from_hugging_face import read_folder

        if average:
            raise UserError(f"{self.path} is a Hugging Face folder, which has no running average of the weights")
        model = self._undrawn(device)
        read_folder(self._folder, model)
        return model.eval()

    def _step_of(self, checkpoint: Path) -> int:
        return 0

    def _using(self, step: StepName, use: Callable[[Path], _Used]) -> _Used:
        if step is not None:
            raise UserError(f"{self.path} is a Hugging Face folder, which has no step {step}")
        return use(self.path)

    def _counts(self) -> dict[str, Any]:
        return {}

    def _imported_files(self) -> dict[str, bytes]:
        return self._folder.kept_files()

    @property
    def _chat_format(self) -> ChatFormat | None:
        return None  # an export keeps the files of the folder
