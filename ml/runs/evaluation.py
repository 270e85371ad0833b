"""Evaluation of the model of a run: texts, its validation sets, or benchmarks. Importing this imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ml.errors import ArgumentError, UserError
from ml.runs.guides import LoadModel, open_guide

if TYPE_CHECKING:
    import torch

    from ml.models import LanguageModel
    from ml.training import Trainer

_OF_HARNESS = ("results", "versions", "n-shot", "higher_is_better", "group_subtasks")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Settings of an evaluation, checked. Without `data` and `tasks` it measures the validation sets of the run.

    Args:
        data: Text files, or folders of them.
        pattern: Which files of a folder, such as "*.txt".
        tasks: Names of tasks of the lm-evaluation-harness.
        task_folder: A folder with definitions of further tasks.
        num_fewshot: Examples before each question; None for what the task states.
        limit: Most questions of each task; None for all.
        apply_chat_template: Asks the tasks as conversations, with the chat template of the run.
        context: Most tokens that one is predicted from; None for the length of training.
        stride: Tokens between two windows of a text; None for half the context.
        batch_size: Windows or requests at once.

    Raises:
        ArgumentError: A value is out of range, or has no effect.
    """

    data: Sequence[str | Path] = ()
    pattern: str = "*"
    tasks: Sequence[str] = ()
    task_folder: str | Path | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    apply_chat_template: bool = False
    context: int | None = None
    stride: int | None = None
    batch_size: int = 8

    def __post_init__(self):
        for name in ("context", "stride", "batch_size", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ArgumentError(f"{{{name}}} must be positive, not %s", value)
        if self.tasks and self.data:
            raise ArgumentError("{data} and {tasks} are two evaluations: ask for one at a time")
        optional = ("task_folder", "num_fewshot", "limit", "apply_chat_template")
        of_tasks = [n for n in optional if getattr(self, n) is not None and getattr(self, n) is not False]
        if of_tasks and not self.tasks:
            raise ArgumentError(f"{', '.join(f'{{{name}}}' for name in of_tasks)} goes with {{tasks}}")
        if self.stride is not None and not self.data:
            raise ArgumentError("{stride} goes with {data}")
        if self.context is not None and not (self.data or self.tasks):
            raise ArgumentError("{context} goes with {data} or {tasks}: validation sets are measured as in training")


class Subject(NamedTuple):
    """The model that is evaluated, and how."""

    trainer: Trainer
    model: LanguageModel
    device: torch.device
    context: int
    stride: int
    batch_size: int
    load: LoadModel

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "context": self.context,
            "batch_size": self.batch_size,
            "precision": self.trainer.precision,
            "device": self.device,
        }


def evaluate(settings: Evaluation, subject: Subject) -> dict[str, Any]:
    """Returns what `Run.evaluate` documents, without the run and the step.

    Raises:
        UserError: There is nothing to evaluate on, or it cannot be read.
    """
    if settings.tasks:
        return _tasks(settings, subject)
    return _texts(settings, subject) if settings.data else _validation_sets(subject)


def context_and_stride(settings: Evaluation, trainer: Trainer) -> tuple[int, int]:
    """The length of a window and the distance of two.

    Raises:
        ArgumentError: They do not fit the model or each other.
    """
    context = settings.context or trainer.sequence_length
    longest = trainer.model.max_sequence_length
    if longest is not None and context > longest:
        raise ArgumentError("{context}=%s is beyond the %s positions of the model", context, longest)
    stride = settings.stride or max(1, context // 2)
    if stride > context:
        raise ArgumentError("{stride}=%s would skip tokens: it can be at most {context}, %s", stride, context)
    return context, stride


def _texts(settings: Evaluation, subject: Subject) -> dict[str, Any]:
    from ml.data import TextFiles
    from ml.training.evaluation.texts import measure_texts, total

    paths = [str(path) for path in settings.data]
    data = subject.trainer.data
    losses = list(
        measure_texts(
            TextFiles(paths, settings.pattern).documents(),
            subject.model,
            data.tokenizer,
            data.begin,
            stride=subject.stride,
            **subject.settings,
        )
    )
    if not losses:
        raise UserError(f"there is nothing to predict in {', '.join(paths)}")
    described = [loss.describe() for loss in losses]
    return {"context": subject.context, "stride": subject.stride, "texts": described, "all": total(losses).describe()}


def _validation_sets(subject: Subject) -> dict[str, Any]:
    trainer = subject.trainer
    validation_sets = trainer.open_data().validation_sets
    if not validation_sets:
        raise ArgumentError("the run has no validation sets: name texts with {data} or tasks with {tasks}")
    has_pairs = any(one.dataset.has_pairs for one in validation_sets)
    guide = open_guide(trainer, subject.load) if has_pairs else None
    rows = []
    for one in validation_sets:
        size = subject.batch_size
        of_subject = (subject.model, one.dataset, size, trainer.precision, subject.device)
        result = one.validation.measure(*of_subject, guide=guide)
        assert result is not None  # nothing asked it to stop
        rows.append({"name": one.name or "validation", **result._asdict()})
    return {"validation_sets": rows}


def _tasks(settings: Evaluation, subject: Subject) -> dict[str, Any]:
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ArgumentError("{tasks} needs the harness: pip install 'juniper-trainer[harness]' (%s)", error) from error
    from ml.models.generation import reason_for_full_pass
    from ml.training.evaluation.harness import HarnessModel

    manager = TaskManager(include_path=settings.task_folder)
    if missing := [name for name in settings.tasks if name not in manager.all_tasks]:
        raise UserError(f"no such task: {', '.join(missing)} (`lm_eval ls tasks` lists those there are)")
    if reason := reason_for_full_pass(subject.model):
        print(f"tasks that generate: {reason}", file=sys.stderr)
    data = subject.trainer.data
    adapter = HarnessModel(subject.model, data.tokenizer, data.separator, data.begin, data.chat, **subject.settings)
    try:
        results = lm_eval.simple_evaluate(
            adapter,
            tasks=list(settings.tasks),
            task_manager=manager,
            num_fewshot=settings.num_fewshot,
            limit=settings.limit,
            apply_chat_template=settings.apply_chat_template,
            log_samples=False,
        )
    except OSError as error:  # what is downloaded and is not there, too
        raise UserError(f"the data of the tasks cannot be read: {error}") from error
    return {"context": subject.context, **{name: results[name] for name in _OF_HARNESS if name in results}}
