"""Every command of docs/runs.md, typed in order in one folder."""

import json
import re
import shlex
from pathlib import Path

import pytest
from warm_python import run_python

import ml

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "runs.md"


def commands():
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def test_each_section_trains_with_one_command():
    sections = PAGE.read_text().split("\n## ")[1:]
    begun = ["Continue a stopped run", "Train longer", "Change a run from a step on"]
    assert [section.splitlines()[0] for section in sections] == [*begun, "Branch from a step", "Fine-tune"]
    assert [section.count("\npython train.py ") for section in sections] == [1] * 5


def test_the_commands_of_the_page_run_in_order(tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"{n} times {n} is {n * n}.\n" for n in range(900)))
    printed = []
    for program, *arguments in commands():
        assert program == "python"
        if arguments[0] == "train.py":
            arguments[0] = str(ROOT / "train.py")
            arguments.append("--gin_bindings=TextFiles.paths = 'text.txt'")
        done = run_python(*arguments, cwd=tmp_path)
        assert done.returncode == 0, (arguments, done.stderr)
        printed.append(done.stdout)
    steps = [json.loads(line)["step"] for line in (tmp_path / "runs/first/metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] == 35
    segments = [
        json.loads(line)["segment"] for line in (tmp_path / "runs/first/history.jsonl").read_text().splitlines()
    ]
    assert sorted(set(segments)) == [0, 20, 30]
    assert any("changed after step 30" in text for text in printed)
    branch, tuned = (ml.open_run(tmp_path / "runs" / name) for name in ("branch", "tuned"))
    assert (branch.history()[0]["first_step"], branch.step, tuned.step) == (31, 40, 10)
    assert branch.metrics()[-1]["learning_rate"] == pytest.approx(5e-6)
    assert any("continuing the training of step 30" in text for text in printed)
    assert any("the data continues after the 160 sequences" in text for text in printed)
