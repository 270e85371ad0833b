"""Evaluate a run: its loss on texts or on its own validation sets, or benchmarks of the lm-evaluation-harness."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from ml.cli.run_arguments import add_run_argument
from ml.errors import UserError
from ml.terminal import table

if TYPE_CHECKING:
    import torch

    from ml.data.sequences.document_separator import Separator
    from ml.models import LanguageModel
    from ml.training import Trainer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_argument(parser)
    parser.add_argument(
        "--data", nargs="+", metavar="PATH", help="text files, or folders of them; left out: the run's validation sets"
    )
    parser.add_argument("--pattern", default="*", help="which files of a folder, such as '*.txt'")
    parser.add_argument("--tasks", help="names of tasks of the lm-evaluation-harness, with commas between them")
    parser.add_argument("--task_folder", help="a folder with definitions of further tasks")
    parser.add_argument(
        "--num_fewshot", type=int, help="examples in front of each question; what the task says if left out"
    )
    parser.add_argument("--limit", type=int, help="only so many questions of each task")
    parser.add_argument("--step", type=int, help="of the checkpoint; the newest if left out")
    parser.add_argument("--average", action="store_true", help="the running average of the weights, not the last ones")
    parser.add_argument("--context", type=int, help="most tokens that one is predicted from (default: as in training)")
    parser.add_argument("--stride", type=int, help="tokens between two windows of a text (default: half the context)")
    parser.add_argument("--batch_size", type=int, default=8, help="windows or requests at once (default 8)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")


def run(arguments: argparse.Namespace) -> None:
    """Prints a table, or an object."""
    _check(arguments)
    import torch

    from ml.api import build_trainer, open_run
    from ml.training.checkpoints.state_files import read_counts

    opened = open_run(arguments.run, trust_code=arguments.trust_run_code)
    trainer = build_trainer(opened.config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    context, stride = _reach(arguments, trainer)
    model = opened.build(arguments.step, device, average=arguments.average)
    subject = _Subject(trainer, model, device, context, stride, arguments.batch_size)
    if arguments.tasks:
        found, shown = _tasks(arguments, subject)
    elif arguments.data:
        found, shown = _texts(arguments, subject)
    else:
        found, shown = _validation_sets(subject)
    step = read_counts(opened.checkpoint(arguments.step))["step"]
    print(json.dumps({"run": arguments.run, "step": step, **found}) if arguments.json else f"step {step}\n{shown}")


class _Subject(NamedTuple):
    """What is evaluated, and how."""

    trainer: Trainer
    model: LanguageModel
    device: torch.device
    context: int
    stride: int
    batch_size: int

    @property
    def separator(self) -> Separator:
        return self.trainer.data.separator

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "context": self.context,
            "batch_size": self.batch_size,
            "precision": self.trainer.precision,
            "device": self.device,
        }


def _check(arguments: argparse.Namespace) -> None:
    for name in ("context", "stride", "batch_size", "limit"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be positive, not {value}")
    if arguments.tasks and arguments.data:
        raise UserError("--data and --tasks are two evaluations: ask for one at a time")
    of_tasks = {"task_folder": arguments.task_folder, "num_fewshot": arguments.num_fewshot, "limit": arguments.limit}
    alone = [f"--{name}" for name, value in of_tasks.items() if value is not None and not arguments.tasks]
    if alone:
        raise UserError(f"{', '.join(alone)} goes with --tasks")
    if arguments.stride is not None and not arguments.data:
        raise UserError("--stride goes with --data")
    if arguments.context is not None and not (arguments.data or arguments.tasks):
        raise UserError("--context goes with --data or --tasks: validation sets are measured as in training")


def _reach(arguments: argparse.Namespace, trainer: Trainer) -> tuple[int, int]:
    context = arguments.context or trainer.sequence_length
    longest = trainer.model.max_sequence_length
    if longest is not None and context > longest:
        raise UserError(f"--context={context} is beyond the {longest} positions of the model")
    stride = arguments.stride or max(1, context // 2)
    if stride > context:
        raise UserError(f"--stride={stride} would leave out tokens: it can be at most --context, {context}")
    return context, stride


def _texts(arguments: argparse.Namespace, subject: _Subject) -> tuple[dict[str, Any], str]:
    from ml.data import TextFiles
    from ml.training.evaluation.texts import measure_texts, total

    documents = TextFiles(arguments.data, arguments.pattern).documents()
    tokenizer = subject.trainer.data.tokenizer
    settings = {**subject.settings, "stride": subject.stride}
    losses = list(measure_texts(documents, subject.model, tokenizer, subject.separator, **settings))
    if not losses:
        raise UserError(f"there is nothing to predict in {', '.join(arguments.data)}")
    described = [loss.describe() for loss in losses]
    everything = total(losses).describe()
    reach = {"context": subject.context, "stride": subject.stride}
    return {**reach, "texts": described, "all": everything}, _table([*described, everything])


def _validation_sets(subject: _Subject) -> tuple[dict[str, Any], str]:
    trainer = subject.trainer
    validation_sets = trainer.open_data().validation_sets
    if not validation_sets:
        raise UserError("the run has no validation sets: name texts with --data or tasks with --tasks")
    rows = []
    for one in validation_sets:
        size = subject.batch_size
        result = one.validation.measure(subject.model, one.dataset, size, trainer.precision, subject.device)
        rows.append({"name": one.name or "validation", **result._asdict()})
    return {"validation_sets": rows}, _table(rows)


def _tasks(arguments: argparse.Namespace, subject: _Subject) -> tuple[dict[str, Any], str]:
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
        from lm_eval.utils import make_table
    except ImportError as error:
        raise UserError(f"--tasks needs the harness: pip install 'juniper-trainer[harness]' ({error})") from error
    from ml.models.generation import reason_for_full_pass
    from ml.training.evaluation.harness import HarnessModel

    names = [name.strip() for name in arguments.tasks.split(",") if name.strip()]
    manager = TaskManager(include_path=arguments.task_folder)
    missing = [name for name in names if name not in manager.all_tasks]
    if missing or not names:
        raise UserError(
            f"no such task: {', '.join(missing) or arguments.tasks} (`lm_eval ls tasks` lists those there are)"
        )
    if reason := reason_for_full_pass(subject.model):
        print(f"tasks that generate: {reason}", file=sys.stderr)
    adapter = HarnessModel(subject.model, subject.trainer.data.tokenizer, subject.separator, **subject.settings)
    try:
        results = lm_eval.simple_evaluate(
            adapter,
            tasks=names,
            task_manager=manager,
            num_fewshot=arguments.num_fewshot,
            limit=arguments.limit,
            log_samples=False,
        )
    except OSError as error:  # what is downloaded and is not there, too
        raise UserError(f"the data of the tasks cannot be read: {error}") from error
    return {"context": subject.context, "results": results["results"]}, make_table(results)


def _table(rows: list[dict[str, Any]]) -> str:
    """Columns in line: the first to the left, numbers to the right."""
    lines = [list(rows[0]), *([_shown(value) for value in row.values()] for row in rows)]
    return "\n".join(table(lines, right=[False] + [True] * (len(lines[0]) - 1)))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if value < 1e6 else f"{value:.3e}"
    return f"{value:,}" if isinstance(value, int) else str(value)
