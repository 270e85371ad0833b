"""Runs started by `torchrun`: what they write, say and return, also when a process fails."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from distributed_runs import squares
from warm_python import run_python

from ml.files import locked

ROOT = Path(__file__).parents[2]
TINY = ["--gin_file=recipes/tiny.gin", "--gin.Trainer.log_every=1", "--gin.Trainer.peak_flops=1e12"]
UNRULY = '''
import os, signal, time
import ml.config
from ml.data import DataError
from ml.training import ConstantSchedule

@ml.config.configurable
class Unruly(ConstantSchedule):
    """A schedule that fails in step 3 of rank 1: it raises, kills its process or hangs."""

    def __init__(self, num_steps, *, what: str):
        super().__init__(num_steps)
        self.what = what

    def __call__(self, step):
        if os.environ.get("RANK") == "1" and step == 3 and self.what:
            if self.what == "raise":
                raise RuntimeError("planned by the test")
            if self.what == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # torchrun waits for half a minute before it kills
            time.sleep(1000)
        return super().__call__(step)
'''
pytestmark = pytest.mark.slow


@pytest.fixture
def work(tmp_path):
    (tmp_path / "unruly.py").write_text(UNRULY)
    (tmp_path / "text.txt").write_text(squares(2000))
    return tmp_path


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
# The launcher of torchrun with workers that it forks: new interpreters would each import torch.
FORKING = """
import runpy, sys
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

def work():
    sys.argv[:] = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")

@record
def main():
    settings = dict(run_id="none", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0)
    elastic_launch(LaunchConfig(1, 1, 2, start_method="fork", **settings), work)()

main()
"""


def train(*flags):
    return [str(ROOT / "train.py"), *TINY, "--gin.TextFiles.paths='text.txt'", *flags]


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def start(work, *flags):
    """Starts torchrun as a shell does."""
    command, pipe = [sys.executable, *TORCHRUN, *train(*flags)], subprocess.PIPE
    return subprocess.Popen(command, cwd=work, env=environment(), stdout=pipe, stderr=subprocess.STDOUT, text=True)


def launched(work, *flags, by=("-c", FORKING), timeout=240):
    """Runs a launcher to its end."""
    done = run_python(*by, *train(*flags), cwd=work, env=environment(), timeout=timeout)
    return done.returncode, done.stdout + done.stderr


def alone(work, *flags):
    return run_python(*train(*flags), cwd=work, env={**os.environ, "PYTHONPATH": str(ROOT)})


def metrics(work):
    file = work / "run" / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_a_run_is_stopped_and_continued_by_one_process(work):
    flags = ["--run_dir=run", "--gin.Trainer.num_steps=200", "--gin.Validation.every=None"]
    process = start(work, *flags)
    while len(metrics(work)) < 3:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    stopped = metrics(work)[-1]["step"]
    assert f"stopped after step {stopped} of 200 and saved" in output
    assert output.count("parameters, ") == output.count("stopped after") == 1  # one of the processes has the terminal
    assert "2 processes (data_shard 2)" in output
    done = alone(work, *flags)
    assert done.returncode == 0, done.stderr
    assert f"resuming from run/checkpoints/step_{stopped}" in done.stdout
    assert [record["step"] for record in metrics(work)] == list(range(1, 201))
    tokens = [record["tokens"] for record in metrics(work)]
    assert tokens == [256 * step for step in range(1, 201)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gin.Linear.bais=True"], "has no parameter 'bais'"),
        (["--gin.Mesh.tensor=2", "--gin.Attention.num_kv_heads=1"], "Attention.num_kv_heads (1) is not divisible by"),
        (["--gin.TextFiles.paths='nowhere.txt'"], "nowhere.txt"),
    ],
)
def test_wrong_input_is_reported_once(work, flags, message):
    code, output = launched(work, "--run_dir=run", *flags)
    assert code == 1  # torchrun's; that of the process is in its summary
    assert output.count(message) == 1, output
    assert "exitcode  : 2" in output
    assert 'train.py", line' not in output  # no traceback
    assert not (work / "run" / "metrics.jsonl").exists()


def test_a_folder_with_a_run_in_progress_is_refused(work):
    (work / "run").mkdir()
    with locked(work / "run", kept_by_children=True):
        code, output = launched(work, "--run_dir=run")
    assert code == 1
    assert output.count("another process is training in run") == 1


def unruly(work, what, timeout=60.0, **options):
    flags = [
        "--run_dir=run",
        "--gin_bindings=import unruly",
        "--gin.Trainer.schedule=@Unruly",
        f"--gin.Unruly.what='{what}'",
        f"--gin.Mesh.timeout={timeout}",
    ]
    return launched(work, *flags, **options)


def test_an_error_of_one_process_ends_all_and_comes_first(work):
    code, output = unruly(work, "raise", by=TORCHRUN)  # which prints the traceback of a program
    assert code == 1
    assert "RuntimeError: planned by the test" in output
    others = output.find("rank 0 lost the connection to another process")
    assert others == -1 or others > output.find("planned by the test")
    assert [record["step"] for record in metrics(work)] == [1, 2]


def test_a_killed_process_ends_all(work):
    code, output = unruly(work, "die", by=TORCHRUN)
    assert code == 1
    assert "rank 0 lost the connection to another process" in output
    assert "Signal 9 (SIGKILL)" in output
    assert [record["step"] for record in metrics(work)] == [1, 2]


def test_a_process_that_hangs_ends_all_in_bounded_time(work):
    begun = time.monotonic()
    code, output = unruly(work, "hang", timeout=5.0)
    assert code == 1
    assert "waited for it longer than Mesh.timeout (5 seconds)" in output
    assert time.monotonic() - begun < 200  # the process sleeps for 1,000 seconds


TWICE = """
import io, ml
bindings = ["TextFiles.paths = 'text.txt'", "Mesh.timeout = 60.0", "Trainer.num_steps = 5"]
bindings += ["Trainer.log_every = 1", "Trainer.peak_flops = 1e12"]
config = ml.load("recipes/tiny.gin", bindings=bindings)
for name in ("one", "two"):
    ml.train(config, name, device="cpu", stream=io.StringIO())
"""


def test_two_runs_one_after_the_other_in_the_same_processes(work):
    (work / "twice.py").write_text(TWICE)
    done = run_python("-c", FORKING, "twice.py", cwd=work, env=environment())
    assert done.returncode == 0, done.stderr
    first, second = ((work / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two"))
    losses = [[json.loads(line)["loss"] for line in lines] for lines in (first, second)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 5
