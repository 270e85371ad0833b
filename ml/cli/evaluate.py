"""Evaluate a run: its loss on texts or on its own validation sets, or benchmarks of the lm-evaluation-harness."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from typing import Any

from ml.cli.path_argument import path_text
from ml.cli.run_arguments import add_run_argument, add_step_argument
from ml.errors import UserError
from ml.runs.evaluation import Evaluation
from ml.terminal import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_argument(parser)
    parser.add_argument(
        "--data",
        type=path_text,
        nargs="+",
        default=[],
        metavar="PATH",
        help="text files, or folders; by default its validation sets",
    )
    parser.add_argument("--pattern", default="*", help="which files of a folder, such as '*.txt'")
    parser.add_argument(
        "--tasks", type=_names, default=[], help="names of tasks of the lm-evaluation-harness, with commas between them"
    )
    parser.add_argument("--task_folder", type=path_text, help="a folder with definitions of further tasks")
    parser.add_argument("--num_fewshot", type=int, help="examples before each question (default: what the task states)")
    parser.add_argument("--limit", type=int, help="at most this many questions of each task")
    parser.add_argument(
        "--apply_chat_template",
        action="store_true",
        help="ask the tasks as conversations, with the template of the run",
    )
    add_step_argument(parser)
    parser.add_argument("--average", action="store_true", help="the running average of the weights, not the last ones")
    parser.add_argument("--context", type=int, help="most tokens that one is predicted from (default: as in training)")
    parser.add_argument("--stride", type=int, help="tokens between two windows of a text (default: half the context)")
    parser.add_argument("--batch_size", type=int, default=8, help="windows or requests at once (default 8)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")


def run(arguments: argparse.Namespace) -> None:
    """Prints a table, or an object."""
    settings = Evaluation(**{field.name: getattr(arguments, field.name) for field in fields(Evaluation)})
    from ml.api import open_run

    opened = open_run(arguments.run, trust_code=arguments.trust_run_code)
    found = opened.evaluate_with(settings, step=arguments.step, average=arguments.average)
    print(json.dumps(found) if arguments.json else f"step {found['step']}\n{_shown(found)}")


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError(f"no such task: {text} (`lm_eval ls tasks` lists those there are)")
    return names


def _shown(found: dict[str, Any]) -> str:
    if "results" in found:
        from lm_eval.utils import make_table

        return make_table(found)
    return _table([*found["texts"], found["all"]] if "texts" in found else found["validation_sets"])


def _table(rows: list[dict[str, Any]]) -> str:
    """Columns in line: the first to the left, numbers to the right."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, *([_cell(row.get(name, "")) for name in names] for row in rows)]
    return "\n".join(table(lines, right=[False] + [True] * (len(lines[0]) - 1)))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if value < 1e6 else f"{value:.3e}"
    return f"{value:,}" if isinstance(value, int) else str(value)
