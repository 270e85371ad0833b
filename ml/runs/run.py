"""The folder of a run: its configuration, its weights, its metrics, and what its model writes and is worth."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from ml.building import build_trainer, load
from ml.config import Config, ImportedValue
from ml.config.configurable import Configurable
from ml.errors import ArgumentError, UserError
from ml.machine import choose_device
from ml.run_files import require_self_contained, segment_folders
from ml.runs.chat_template import restore_chat_template
from ml.runs.evaluation import Evaluation, Subject, context_and_stride, evaluate
from ml.runs.generation import Generated, GenerateOptions, Generation, Messages, generate_texts, given_prompts

if TYPE_CHECKING:
    import torch

    from ml.data.chat.encoding import ChatFormat
    from ml.data.chat.template import Chat
    from ml.data.tokenizers import Tokenizer
    from ml.models import LanguageModel
    from ml.training import Trainer
    from ml.training.checkpoints.policy import StepName

_Used = TypeVar("_Used")
_MODEL_PACKAGES = ("ml.layers.", "ml.blocks.", "ml.models.")


class Run:
    """The folder of a run, open for looking inside, generating text, evaluating and exporting.

    Args:
        path: The folder.
        trust_code: Executes the copy of custom modules in the run folder, for a run with layers that are not installed.

    Raises:
        UserError: There is no run.
    """

    def __init__(self, path: str | Path, *, trust_code: bool = False):
        self._trust_code = trust_code
        self.path = Path(path)
        self._operative = self.path / "operative_config.gin"
        self._require_files()
        self._loaded: dict[tuple[Path, torch.device, bool], LanguageModel] = {}

    def _require_files(self) -> None:
        require_self_contained(self.path)
        if not self._operative.is_file():
            raise UserError(f"there is no run in {self.path}: it has no operative_config.gin")

    @functools.cached_property
    def config(self) -> Config:
        """The configuration of the run, from its operative config."""
        return load(self._operative, trust_code=self._trust_code)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of its data."""
        return self._trainer.data.tokenizer

    @property
    def step(self) -> int:
        """Optimizer steps in the newest valid checkpoint; 0 if there is none."""
        return self._counts().get("step", 0)

    @property
    def is_finished(self) -> bool:
        """True after the last step or early stopping. A stopped run resumes by `ml.train(run.config, run.path)`."""
        from ml.training.checkpoints.state_files import restore_lowest

        counts, lowest = self._counts(), self._trainer.lowest()
        restore_lowest(counts, lowest)
        return self._trainer.is_end(counts.get("step", 0), lowest) and counts["unvalidated"] is None

    def build(
        self, step: StepName = None, device: str | torch.device = "cpu", *, average: bool = False
    ) -> LanguageModel:
        """Builds the model with the weights of a checkpoint.

        Args:
            step: Step of the checkpoint; None for the newest whole one, "best" for that of `Checkpoints.keep_best`.
            device: Where the model is put.
            average: Takes the running average of the weights instead of the last ones.

        Returns:
            The model, in evaluation mode.

        Raises:
            RunError: There is no such checkpoint, it is damaged, or it has no average.
        """
        return self._using(step, lambda checkpoint: self.build_checkpoint(checkpoint, device, average=average))

    def checkpoint(self, step: StepName = None) -> Path:
        """The folder of a checkpoint, which a run that is training may remove; None is the newest whole one.

        Raises:
            RunError: There is no such checkpoint, or it is damaged.
        """
        from ml.training.checkpoints.policy import open_checkpoint

        return open_checkpoint(self.path / "checkpoints", step)

    @overload
    def generate(self, prompts: str, **options: Unpack[GenerateOptions]) -> str: ...

    @overload
    def generate(
        self,
        prompts: list[str] | tuple[str, ...],
        *,
        num_samples: int | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[str]: ...

    @overload
    def generate(self, prompts: str, *, num_samples: int, **options: Unpack[GenerateOptions]) -> list[str]: ...

    @overload
    def generate(
        self, *, messages: Messages, tools: list[Any] | None = None, **options: Unpack[GenerateOptions]
    ) -> str: ...

    @overload
    def generate(
        self,
        *,
        messages: Sequence[Messages],
        tools: list[Any] | None = None,
        num_samples: int | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[str]: ...

    @overload
    def generate(
        self,
        *,
        messages: Messages,
        tools: list[Any] | None = None,
        num_samples: int,
        **options: Unpack[GenerateOptions],
    ) -> list[str]: ...

    def generate(
        self,
        prompts: str | Sequence[str] | None = None,
        *,
        messages: Messages | Sequence[Messages] | None = None,
        tools: list[Any] | None = None,
        num_samples: int | None = None,
        num_tokens: int | None = None,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        stop: str | Sequence[str] = (),
        seed: int = 0,
        step: StepName = None,
        average: bool = False,
        device: str | torch.device | None = None,
        show: Callable[[int, str], None] | None = None,
    ) -> str | list[str]:
        """Generates text, as `juniper generate` does; equal seeds give equal texts.

        The model stays loaded for the next call of the same checkpoint.

        Args:
            prompts: A text to continue, or several; an empty one starts a document.
            messages: A conversation to answer with the chat template of the run, or several: each a list of messages,
                `{"role": "user", "content": "Hi"}`. If the last one is the assistant's, its text is continued.
            tools: Descriptions of the tools that the assistant can call, for templates with tools; None for none.
            num_samples: Texts for each prompt; None for one.
            num_tokens: Most tokens of a text; None for 256, or what learned positions have room for.
            temperature: Divides the logits; 0 takes the most likely token.
            top_k: Draws from this many of the most likely tokens; None for all.
            top_p: Draws from the most likely tokens that together have this probability; None for all.
            min_p: Skips tokens with less than this part of the probability of the most likely one; None for no limit.
            stop: Text before which to stop, or several. The separator of documents always stops, and the end of an
                answer.
            seed: Seed of the draws. What is drawn for a prompt depends on the seed and its index alone.
            step: Step of the checkpoint; None for the newest whole one, "best" for that of `Checkpoints.keep_best`.
            average: Takes the running average of the weights instead of the last ones.
            device: Where to generate; None for the GPU where there is one.
            show: Called with the index of a text and all of it that is certain, as it grows.

        Returns:
            The text after the prompt, without the prompt, or the answer. For several prompts or with `num_samples` a
            list: the samples of the first prompt, then those of the next.

        Raises:
            UserError: A value is out of range, a prompt cannot be continued, there is no such checkpoint, or the run
                has no chat template.
        """
        settings = Generation(
            num_tokens=num_tokens,
            num_samples=1 if num_samples is None else num_samples,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            stop=[stop] if isinstance(stop, str) else list(stop),
            seed=seed,
        )
        given, is_one = given_prompts(prompts, messages, tools)
        made = self.generate_with(settings, given, step=step, average=average, device=device, show=show)
        texts = [one.text for one in made.texts]
        return texts[0] if is_one and num_samples is None else texts

    def generate_with(
        self,
        settings: Generation,
        prompts: Sequence[str] | Sequence[Chat],
        *,
        step: StepName = None,
        average: bool = False,
        device: str | torch.device | None = None,
        show: Callable[[int, str], None] | None = None,
    ) -> Generated:
        """Generates text and reports how each one ended and how long it took; the rest is as for `generate`."""
        where = choose_device(device)
        return generate_texts(lambda: self._model(step, where, average), self._trainer.data, prompts, settings, show)

    def evaluate(
        self,
        data: str | Path | Sequence[str | Path] = (),
        *,
        pattern: str = "*",
        tasks: str | Sequence[str] = (),
        task_folder: str | Path | None = None,
        num_fewshot: int | None = None,
        limit: int | None = None,
        apply_chat_template: bool = False,
        context: int | None = None,
        stride: int | None = None,
        batch_size: int = 8,
        step: StepName = None,
        average: bool = False,
        device: str | torch.device | None = None,
    ) -> dict[str, Any]:
        """Evaluates the model, as `juniper evaluate` does: on texts, on tasks, or on the validation sets of the run.

        Args:
            data: Text files, or folders of them.
            pattern: Which files of a folder, such as "*.txt".
            tasks: A task of the lm-evaluation-harness, or several.
            task_folder: A folder with definitions of further tasks.
            num_fewshot: Examples before each question; None for what the task states.
            limit: Most questions of each task; None for all.
            apply_chat_template: Asks the tasks as conversations, with the chat template of the run.
            context: Most tokens that one is predicted from; None for the length of training.
            stride: Tokens between two windows of a text; None for half the context.
            batch_size: Windows or requests at once.
            step: Step of the checkpoint; None for the newest whole one, "best" for that of `Checkpoints.keep_best`.
            average: Takes the running average of the weights instead of the last ones.
            device: Where to evaluate; None for the GPU where there is one.

        Returns:
            What `--json` prints. Always `run` and `step`. Of texts `context`, `stride`, `texts` (each with `name`,
            `tokens`, `bytes`, `loss` in nats per token, `perplexity`, `bits_per_byte`) and `all`, the same of all
            together. Of tasks `context` and what the harness reports (`results` by task). Else `validation_sets`,
            each with `name`, `loss`, `bits_per_byte`.

        Raises:
            UserError: A value is out of range or has no effect, or there is nothing to evaluate on.
        """
        settings = Evaluation(
            data=[data] if isinstance(data, str | Path) else list(data),
            pattern=pattern,
            tasks=[tasks] if isinstance(tasks, str) else list(tasks),
            task_folder=task_folder,
            num_fewshot=num_fewshot,
            limit=limit,
            apply_chat_template=apply_chat_template,
            context=context,
            stride=stride,
            batch_size=batch_size,
        )
        return self.evaluate_with(settings, step=step, average=average, device=device)

    def evaluate_with(
        self,
        settings: Evaluation,
        *,
        step: StepName = None,
        average: bool = False,
        device: str | torch.device | None = None,
    ) -> dict[str, Any]:
        """Evaluates the model, as `evaluate` does."""
        reach = context_and_stride(settings, self._trainer)
        where = choose_device(device)
        model, at_step = self._using(
            step, lambda checkpoint: (self._loaded_from(checkpoint, where, average), self._step_of(checkpoint))
        )

        def load(path: str, found: Path, average: bool) -> LanguageModel:
            return Run(path).build_checkpoint(found, where, average=average)

        subject = Subject(self._trainer, model, where, *reach, settings.batch_size, load)
        return {"run": str(self.path), "step": at_step, **evaluate(settings, subject)}

    def export(self, file: str | Path, step: StepName = None, *, average: bool = False) -> int:
        """Writes the weights of a checkpoint alone to a safetensors file.

        Args:
            file: What to write; one that is there is replaced.
            step: Step of the checkpoint; None for the newest whole one, "best" for that of `Checkpoints.keep_best`.
            average: Takes the running average of the weights instead of the last ones.

        Returns:
            The number of tensors.

        Raises:
            RunError: There is no such checkpoint, or the file cannot be written.
        """
        from ml.runs.tokenizers import known_tokenizer
        from ml.training.checkpoints.weight_files import export_weights

        tokenizer = known_tokenizer(self._trainer.data)
        identity = None if tokenizer is None else tokenizer.identity
        return self._using(
            step, lambda checkpoint: export_weights(checkpoint, Path(file), average=average, tokenizer=identity)
        )

    def config_file(self, step: int | None = None) -> Path:
        """The operative config that was in force in a step; None is the newest."""
        earlier = [path for start, path in segment_folders(self.path).items() if step is not None and start < step]
        return earlier[-1] / self._operative.name if earlier else self._operative

    def export_adapter(
        self,
        folder: str | Path,
        step: StepName = None,
        *,
        average: bool = False,
        base: str | Path | None = None,
    ) -> list[str]:
        """Writes the adapters of a model as a folder that peft loads.

        Args:
            folder: The folder to make.
            step: Step of the checkpoint; None for the newest whole one, "best" for that of `Checkpoints.keep_best`.
            average: Takes the running average of the weights instead of the last ones.
            base: Name or folder of the model without adapters; None for the folder that the run started from.

        Returns:
            Lines that describe what was written.

        Raises:
            UserError: There are no adapters, or peft cannot express them.
        """
        from ml.interop.adapters import export_adapter
        from ml.interop.from_hugging_face import FromHuggingFace

        start = self._trainer.initial_weights
        if base is None and not isinstance(start, FromHuggingFace):
            raise ArgumentError("{base} must name the model without adapters: the run started from no such folder")
        named = str(base) if base is not None else start.path  # type: ignore[union-attr]
        model = self.build(step, average=average)
        return export_adapter(model, Path(folder), self._imported_files(), named)

    def export_hugging_face(
        self,
        folder: str | Path,
        step: StepName = None,
        *,
        average: bool = False,
        merge: bool = False,
        dtype: torch.dtype | None = None,
        shard_size: int | None = None,
    ) -> list[str]:
        """Writes a model as a folder that `transformers.AutoModelForCausalLM` loads, with tokenizer and chat template.

        Args:
            folder: The folder to make.
            step: Step of the checkpoint; None for the newest whole one, "best" for that of `Checkpoints.keep_best`.
            average: Takes the running average of the weights instead of the last ones.
            merge: Merges adapters into the weights.
            dtype: Dtype of the weights; None for that of the model.
            shard_size: Most bytes of a file; None for 5 GB.

        Returns:
            Lines that describe what was written.

        Raises:
            UserError: The format cannot express the model; the message names the first obstacle.
        """
        from ml.interop.exporting import SHARD_SIZE, export_folder

        return export_folder(
            self.build(step, average=average),
            Path(folder),
            kept=self._imported_files(),
            tokenizer=self.tokenizer,
            chat=self._chat_format,
            sequence_length=self._trainer.sequence_length,
            dtype=dtype,
            shard_size=SHARD_SIZE if shard_size is None else shard_size,
            merge=merge,
        )

    def _imported_files(self) -> dict[str, bytes]:
        """The files of the Hugging Face folder that the run started from, by name; empty without one."""
        from ml.training.run_folder import RunFolder

        return RunFolder(self.path).imported_files()

    @property
    def _chat_format(self) -> ChatFormat | None:
        """The chat template with the tokenizer; None for data without conversations."""
        return self._trainer.data.chat

    def imported_values(self) -> list[ImportedValue]:
        """The configuration of the model, as the imported layer of a run that starts from this one."""
        return self.config.as_imported(is_part_of_a_model, str(self._operative))

    def history(self) -> list[dict[str, Any]]:
        """The records of history.jsonl, one for each start, oldest first."""
        from ml.training.run_folder import RunFolder

        return RunFolder(self.path).history()

    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, oldest first."""
        from ml.training.run_folder import RunFolder

        return RunFolder(self.path).metrics()

    @functools.cached_property
    def _trainer(self) -> Trainer:
        from ml.runs.tokenizers import lend_tokenizer, use_kept_tokenizer

        trainer = build_trainer(self.config)
        lend_tokenizer(trainer, self.path)
        use_kept_tokenizer(trainer, self.path)
        restore_chat_template(trainer.data, self.path, only_if_missing=False)
        return trainer

    def _model(self, step: StepName, device: torch.device, average: bool) -> LanguageModel:
        """The model of a checkpoint, in evaluation mode. The last one that was asked for stays loaded."""
        return self._using(step, lambda checkpoint: self._loaded_from(checkpoint, device, average))

    def _loaded_from(self, checkpoint: Path, device: torch.device, average: bool) -> LanguageModel:
        key = (checkpoint, device, average)
        if key not in self._loaded:
            self._loaded = {}  # frees the other one before there are two
            self._loaded[key] = self.build_checkpoint(checkpoint, device, average=average)
        return self._loaded[key].eval()

    def build_checkpoint(
        self, checkpoint: Path, device: str | torch.device = "cpu", *, average: bool = False
    ) -> LanguageModel:
        """Builds the model with the weights in the folder of a checkpoint; the rest is as for `build`."""
        from ml.training.checkpoints.weight_files import read_weights

        read_weights(checkpoint, self._trainer.model, average=average)  # on the meta device: only compared
        model = self._undrawn(device)
        read_weights(checkpoint, model, average=average)
        return model.eval()

    def _undrawn(self, device: str | torch.device) -> LanguageModel:
        """The model with memory for all of its parameters, which are read next."""
        import torch

        names = [name for name, _ in self._trainer.model.named_parameters()]
        return self._trainer.allocate(torch.device(device), names)

    def _step_of(self, checkpoint: Path) -> int:
        from ml.training.checkpoints.state_files import read_counts

        return read_counts(checkpoint)["step"]

    def _using(self, step: StepName, use: Callable[[Path], _Used]) -> _Used:
        """Calls a function with the folder of a checkpoint, which stays until it returns."""
        from ml.training.checkpoints.policy import using_checkpoint

        return using_checkpoint(self.path / "checkpoints", step, use)

    def _counts(self) -> dict[str, Any]:
        """Values in the newest valid checkpoint other than tensors; empty if there is none."""
        from ml.training.checkpoints.policy import newest_counts

        return newest_counts(self.path / "checkpoints")


def is_part_of_a_model(info: Configurable) -> bool:
    """Returns True for a configurable that makes a module or any other part of a model."""
    from torch import nn

    is_module = isinstance(info.target, type) and issubclass(info.target, nn.Module)
    return is_module or info.selector.startswith(_MODEL_PACKAGES)
