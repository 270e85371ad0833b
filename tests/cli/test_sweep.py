"""`python -m ml sweep` with real runs in separate processes."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

import ml
from ml.cli import verbs

HEAD = """
gin_file = "recipes/tiny.gin"
gin_bindings = [
    "TextFiles.paths = 'text.txt'", "CosineSchedule.warmup_steps = 1", "Trainer.num_steps = 3",
    "Trainer.log_every = 1", "Checkpoints.every = 20", "Validation.every = 1000",
]
"""
LONG = '[[list]]\nname = "long"\ngin_bindings = ["Trainer.num_steps = 60"]\n'
SHORT = '[[list]]\nname = "short"\n'


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Creates a working folder with a text to train on; runs use one thread."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    Path("text.txt").write_text("".join(f"{n} times {n} is {n * n}.\n" for n in range(400)))
    return tmp_path


@pytest.fixture
def sweep(work, capsys):
    """Writes the sweep file and runs the verb in this process; returns the exit code and the output."""

    def run(text, *arguments):
        Path("s.toml").write_text(f"{HEAD}{text}")
        code = verbs.main(["sweep", "s.toml", *arguments])
        return code, *capsys.readouterr()

    return run


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def process_of(member):
    """Returns the process id of a member after its first checkpoint."""
    folder = Path("sweeps/s") / member
    wait_for(lambda: list(folder.glob("checkpoints/step_*")))
    wanted = f"--run_dir={folder}".encode()
    commands = [(path.parent.name, path) for path in Path("/proc").glob("[0-9]*/cmdline")]
    return next(int(pid) for pid, path in commands if wanted in _read(path).split(b"\0"))


def _read(path):
    try:
        return path.read_bytes()
    except OSError:  # it has ended in the meantime
        return b""


@pytest.fixture
def meanwhile():
    """Runs a function in a parallel thread; its exceptions fail the test."""
    threads, problems = [], []

    def start(function):
        def guarded():
            try:
                function()
            except BaseException as error:
                problems.append(error)

        threads.append(threading.Thread(target=guarded))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join()
    assert problems == []


def table():
    with open("sweeps/s/table.csv") as file:
        return {row["member"]: row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_failed_and_killed_members_do_not_stop_the_others_and_are_retried(sweep, meanwhile):
    diverges = '[[list]]\nname = "bad"\ngin_bindings = ["AdamW.learning_rate = 1e30"]\n'
    meanwhile(lambda: os.kill(process_of("long"), signal.SIGKILL))
    code, out, err = sweep(LONG + diverges + SHORT)
    assert code == 1
    assert err == "2 of 3 runs did not finish; the same command tries them again\n"
    assert {name: (row["status"], row["exit_code"]) for name, row in table().items()} == {
        "short": ("finished", "0"),
        "bad": ("failed", "1"),
        "long": ("failed", "-9"),
    }
    assert "long: killed by SIGKILL, sweeps/s/long/log.txt\n    step " in out
    assert "bad: exit code 1, sweeps/s/bad/log.txt\n    the loss or its gradient is not finite since step" in out
    assert "[3/3] short  finished  loss" in out
    assert Image.open("sweeps/s/plot.png").width > 1000

    log = Path("sweeps/s/short/log.txt").read_text()
    code, out, _ = sweep(LONG + SHORT)
    assert code == 0
    assert "not of this sweep, and left alone: bad\n" in out
    assert "[2/2] short  finished before\n" in out
    assert Path("sweeps/s/short/log.txt").read_text() == log
    assert "resuming from sweeps/s/long/checkpoints/step_" in Path("sweeps/s/long/log.txt").read_text()
    steps = [record["step"] for record in ml.open_run("sweeps/s/long").metrics()]
    assert steps == list(range(1, 61))
    assert [member["status"] for member in json.loads(Path("sweeps/s/sweep.json").read_text())["members"]] == [
        "finished",
        "finished",
    ]


@pytest.mark.slow
def test_ctrl_c_ends_the_run_with_a_checkpoint_and_the_sweep(sweep, meanwhile):
    def stop():
        process_of("long")
        os.kill(os.getpid(), signal.SIGINT)

    meanwhile(stop)
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    code, out, err = sweep(LONG.replace("= 60", "= 100000") + SHORT)
    assert code == 1
    assert err == "stopped with 2 of 2 runs to go; the same command resumes from there\n"
    step = max(int(path.name.removeprefix("step_")) for path in Path("sweeps/s/long/checkpoints").glob("step_*"))
    assert f"[1/2] long  unfinished at step {step}  loss" in out
    assert f"stopped after step {step} of 100000 and saved" in Path("sweeps/s/long/log.txt").read_text()
    assert not Path("sweeps/s/short").exists()
    assert table()["short"]["status"] == "not started"
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


@pytest.mark.slow
def test_the_printed_commands_produce_the_same_runs(sweep, work):
    grid = '[grid]\nTrainer.seed = [1, 2]\n"TextFiles.paths" = ["[\'text.txt\']"]\n'
    code, commands, _ = sweep(grid, "--print")
    assert code == 0
    assert len(commands.splitlines()) == 2
    assert not (work / "sweeps").exists()
    subprocess.run(["sh", "-e", "-c", commands], check=True, capture_output=True)
    code, out, _ = sweep(grid)
    assert code == 0
    assert "[1/2] seed=1,paths=text.txt  finished before\n[2/2] seed=2,paths=text.txt  finished before\n" in out
    assert sweep(grid, "--print") == (0, "", "")


@pytest.mark.slow
def test_a_run_left_by_a_killed_sweep_is_not_started_twice(sweep, work):
    Path("s.toml").write_text(HEAD + LONG.replace("= 60", "= 100000"))
    killed = subprocess.Popen([sys.executable, "-m", "ml", "sweep", "s.toml"], stdout=subprocess.DEVNULL)
    left = process_of("long")
    try:
        killed.kill()
        killed.wait()
        code, _, err = sweep(LONG.replace("= 60", "= 100000"))
        assert code == 1
        assert err == "sweeps/s: another sweep is at work, or a run that it began: wait for it, or stop it\n"
    finally:
        os.kill(left, signal.SIGKILL)


def test_a_dry_run_lists_the_members_and_writes_nothing(sweep, work):
    code, out, _ = sweep(f"{SHORT}[grid]\nTrainer.seed = [1, 2]", "--dry_run")
    assert code == 0
    assert out.splitlines()[:2] == ["short,seed=1  not started", "short,seed=2  not started"]
    assert sorted(path.name for path in work.iterdir()) == ["s.toml", "text.txt"]


def test_a_report_runs_nothing(sweep):
    code, out, _ = sweep(SHORT, "--report", "--output=elsewhere")
    assert code == 0
    assert "short     0  not started" in out
    assert "(nothing to draw yet)" in out
    assert sorted(path.name for path in Path("elsewhere").iterdir()) == ["sweep.json", "table.csv"]


WRONG = {
    "a typo": ('[[list]]\nname = "a"\ngin_bindings = ["Trainer.num_step = 1"]', "s.toml: a: 1 error"),
    "no list": ("[grid]\nTrainer.seed = 1", "s.toml: [grid] Trainer.seed must be a list of the values to take, not 1"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_errors_are_reported_before_any_run(sweep, work, text, message):
    code, out, err = sweep(SHORT + text)
    assert (code, out) == (2, "")
    assert message in err
    assert not (work / "sweeps").exists()


def test_a_missing_file_is_an_error_and_shipped_files_are_found(work, capsys):
    assert verbs.main(["sweep", "sweeps/learning_rat.toml"]) == 2
    assert "did you mean 'sweeps/learning_rate.toml'?" in capsys.readouterr().err
    assert verbs.main(["sweep", "sweeps/learning_rate.toml", "--dry_run"]) == 0
    assert "6 runs" in capsys.readouterr().out


def test_an_unwritable_folder_is_an_error(sweep, work):
    (work / "file").touch()
    code, _, err = sweep(SHORT, "--output=file")
    assert (code, err) == (1, "cannot write to file: File exists\n")
