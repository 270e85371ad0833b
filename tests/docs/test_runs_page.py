"""Every command of docs/runs.md, typed in order in one folder."""

import json
import re
import shlex
from pathlib import Path

from warm_python import run_python

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "runs.md"


def commands():
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


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
