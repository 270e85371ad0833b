"""Time from the command to the first step of the default run, by stage.

    python benchmarks/first_step.py [--rounds=3]

Each round is a new process that takes the path of `train.py --gin_file=base.gin` and ends after its first step. Medians
of wall and CPU seconds. torch imports `torch._dynamo` for the step on fake tensors that checks the configuration; its
optimizers import it too.
"""

import argparse
import importlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time

_STAGES = ("import torch", "import torch._dynamo", "import Juniper", "configuration", "start", "first step")


def child(run_dir: str) -> None:
    """Takes the first step of the default run and prints the seconds of its stages."""
    marks = [(time.perf_counter(), time.process_time())]

    def mark() -> None:
        marks.append((time.perf_counter(), time.process_time()))

    importlib.import_module("torch")
    mark()
    importlib.import_module("torch._dynamo")
    mark()
    import ml.training.loop
    from ml import api
    from ml.cli.train import main

    mark()
    build, step = api.build_trainer, ml.training.loop.train_step

    def configured(config):
        trainer = build(config)
        mark()
        return trainer

    def stepped(*arguments):
        mark()
        step(*arguments)
        mark()
        stages = [[b - a for a, b in zip(x, y, strict=True)] for x, y in itertools.pairwise(marks)]
        print(json.dumps(stages), flush=True)
        sys.exit(0)

    api.build_trainer, ml.training.loop.train_step = configured, stepped
    main(["--gin_file=base.gin", f"--run_dir={run_dir}"])


def measured() -> tuple[float, list[list[float]]]:
    """Returns the wall seconds of a process and the wall and CPU seconds of its stages."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        command = [sys.executable, __file__, f"--child={folder}/run"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        took = time.perf_counter() - begun
    return took, json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[[")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        child(arguments.child)
        return
    rounds = [measured() for _ in range(arguments.rounds)]
    print(f"{'':<22} {'wall':>7} {'CPU':>7}")
    for index, stage in enumerate(_STAGES):
        wall, cpu = (statistics.median(stages[index][kind] for _, stages in rounds) for kind in (0, 1))
        print(f"{stage:<22} {wall:>5.2f} s {cpu:>5.2f} s")
    totals = [[sum(stage[kind] for stage in stages) for _, stages in rounds] for kind in (0, 1)]
    print(f"{'all stages':<22} {statistics.median(totals[0]):>5.2f} s {statistics.median(totals[1]):>5.2f} s")
    print(f"{'process':<22} {statistics.median(took for took, _ in rounds):>5.2f} s")


if __name__ == "__main__":
    main()
