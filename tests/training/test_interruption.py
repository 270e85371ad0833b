"""Signals, sent to a real process."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from saved import saved_bits, saved_tensors, untimed
from warm_python import run_python

from ml.run_files import segment_folders
from ml.training import RunFolder
from ml.training.checkpoints.atomic_folders import damage
from ml.training.checkpoints.state_files import read_counts
from ml.training.signals import handled_signals

PROGRAM = textwrap.dedent(
    """
    import sys, torch
    from ml.config import load
    from ml.training import RunFolder, Trainer, train

    def build():
        with torch.device("meta"):
            return Trainer()

    torch.set_num_threads(1)
    trainer = load(bindings=sys.argv[2:], root=build).build(build)
    print(train(trainer, trainer.open_data(), RunFolder(sys.argv[1]), torch.device("cpu")), flush=True)
    """
)


def has_begun(metrics, inode_before):
    """A run that resumes replaces the file of its metrics; a new one begins it."""
    return metrics.exists() and metrics.stat().st_size > 0 and metrics.stat().st_ino != inode_before


@pytest.fixture
def begin(tmp_path, tiny_bindings):
    """Starts a run and waits until a step is logged or taken back; what still runs after the test is ended."""
    processes = []

    def begin(*bindings):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "run"), *tiny_bindings, *bindings]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        metrics = tmp_path / "run/metrics.jsonl"
        before = metrics.stat().st_ino if metrics.exists() else None
        while process.poll() is None and not has_begun(metrics, before):
            time.sleep(0.02)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


ENDLESS = "Trainer.num_steps = 1000000"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_cleanly_and_the_run_resumes(begin, tmp_path, tiny_bindings, number):
    process = begin(ENDLESS, "Checkpoints.every = None")
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "and saved; the same command with --run_dir=" in output
    (checkpoint,) = (tmp_path / "run/checkpoints").iterdir()
    step = json.loads((checkpoint / "training.json").read_text())["step"]
    assert f"Outcome(step={step}, is_finished=False)" in output

    bindings = [*tiny_bindings, ENDLESS, "Checkpoints.every = None", f"Trainer.stop_at_step = {step + 1}"]
    again = run_python("-c", PROGRAM, tmp_path / "run", *bindings, cwd=tmp_path)
    assert f"resuming from {checkpoint}" in again.stdout, again.stderr
    assert f"Outcome(step={step + 1}, is_finished=False)" in again.stdout


def checkpoints(tmp_path):
    return {path.name for path in (tmp_path / "run/checkpoints").glob("step_*")}


def wait_until(condition, process):
    while process.poll() is None and not condition():
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()


@pytest.mark.slow
def test_sigusr1_saves_and_the_run_continues(begin, tmp_path):
    process = begin(ENDLESS, "Checkpoints.every = None")
    process.send_signal(signal.SIGUSR1)
    wait_until(lambda: checkpoints(tmp_path), process)
    (saved,) = checkpoints(tmp_path)
    last = RunFolder(tmp_path / "run").metrics()[-1]["step"]
    wait_until(lambda: RunFolder(tmp_path / "run").metrics()[-1]["step"] > last + 4, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert len(checkpoints(tmp_path) - {saved}) == 1


@pytest.mark.slow
def test_a_signal_during_a_save_lets_it_end(begin, tmp_path):
    process = begin(ENDLESS, "Checkpoints.every = 1")
    wait_until(lambda: any((tmp_path / "run/checkpoints").glob(".step_*.tmp")), process)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "and saved" in output
    assert not list((tmp_path / "run/checkpoints").glob(".*"))
    assert all(damage(path) is None for path in (tmp_path / "run/checkpoints").iterdir())


@pytest.mark.slow
def test_a_signal_during_a_validation_does_not_wait_for_its_end(begin, tmp_path, text_file):
    text_file.write_text(text_file.read_text() * 2000)  # some minutes of validation
    bindings = (ENDLESS, "Validation.every = 3", "Validation.num_tokens = None", "Trainer.log_every = 1")
    process = begin(*bindings)
    wait_until(lambda: len(RunFolder(tmp_path / "run").metrics()) == 2, process)
    time.sleep(1.0)  # step 3 takes a hundredth of that
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "stopped after step 3" in output
    assert [record["step"] for record in RunFolder(tmp_path / "run").metrics()] == [1, 2]
    assert read_counts(tmp_path / "run/checkpoints/step_3")["unvalidated"]["step"] == 3


FEW_KERNELS = ["Repeat.num_blocks = 1", "DecoderBlock.mlp = None", "DecoderBlock.dropout = 0.0"]


@pytest.mark.slow
def test_a_signal_during_the_compilation_ends_the_run_after_the_first_step(tmp_path, tiny_bindings):
    """Ctrl-C comes to every process of the terminal's group, those that compile among them."""
    cache = tmp_path / "cache"
    bindings = [*tiny_bindings, ENDLESS, "Trainer.compile = True", *FEW_KERNELS]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "run"), *bindings],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)},
    )
    wait_until(lambda: any(cache.rglob("*.cpp")) or any(cache.rglob("*.py")), process)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "stopped after step 1 of" in output
    assert checkpoints(tmp_path) == {"step_1"}


FIRST = ["Trainer.num_steps = 80", "Validation.every = 40"]
SECOND = ["Trainer.num_steps = 160", "Validation.every = 40", "Trainer.schedule = @ConstantSchedule"]
SECOND += ["Trainer.batch_size = 6", "Trainer.micro_batch_size = 2", "AdamW.learning_rate = 0.001"]


def run_and_kill(folder, num_kills, seed=0):
    """Trains `configs/tests/kill.gin`, shortened, with other settings from step 80 on; returns the kills inside a save,
    and all."""
    command = (Path(__file__).with_name("kill.py"), folder, str(seed), str(num_kills))
    done = run_python(*command, *FIRST, "+", *SECOND, cwd=folder.parent, timeout=300)
    assert done.returncode == 0, done.stderr
    inside, kills = map(int, done.stdout.split())
    return inside, kills


@pytest.mark.slow
def test_a_run_that_is_killed_at_many_moments_ends_as_if_it_had_not_been(tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    run_and_kill(undisturbed, 0)
    inside, kills = run_and_kill(killed, 16)
    assert inside >= 2
    assert kills >= 13
    environment = json.loads((killed / "environment.json").read_text())
    assert len(environment["earlier"]) >= 4  # a process that is killed before it has loaded the data is not recorded
    assert list(segment_folders(killed)) == [0, 80]
    segments = [start["segment"] for start in RunFolder(killed).history()]
    assert min(segments.count(0), segments.count(80)) >= 2
    ours, theirs = (saved_bits(run / "checkpoints/step_160") for run in (killed, undisturbed))
    assert {name.partition("/")[0] for name in theirs} == {"model", "optimizer", "weight_average", "skip_step"}
    assert saved_tensors(undisturbed / "checkpoints/step_160")["skip_step/skipped"] > 0
    assert ours == theirs
    ours, theirs = (untimed(RunFolder(run).metrics()) for run in (killed, undisturbed))
    assert [record["step"] for record in ours] == list(range(1, 161))
    assert ours == theirs


COMPUTING = """if True:
    import hashlib
    from ml.training.signals import handled_signals
    with handled_signals():
        print("ready", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 200_000_000)  # minutes outside of Python, as a long step
"""


def test_ctrl_c_is_answered_at_once_and_a_second_one_ends_the_process_in_the_middle_of_a_step():
    command = [sys.executable, "-c", COMPUTING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            assert process.stderr.readline() == "\n"
            assert process.stderr.readline().startswith("stopping: the current step is completed and a checkpoint")
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == -signal.SIGINT
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_requests_to_stop_are_answered_once(number, capfd, hangups):
    with handled_signals() as requests:
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert requests.stop is number
    name = signal.Signals(number).name
    assert capfd.readouterr().err == f"\nstopping on {name}: the current step is completed and a checkpoint is saved\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_signals_that_are_ignored_stay_ignored(number, capfd):
    """A shell ignores SIGINT for commands in the background, nohup ignores SIGHUP."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with handled_signals() as requests:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            assert requests.stop is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert requests.stop is signal.SIGTERM
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)
    assert capfd.readouterr().err.count("stopping") == 1


def test_a_signal_of_a_forked_process_is_no_second_ctrl_c():
    with handled_signals() as requests:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert requests.stop is None
        os.kill(os.getpid(), signal.SIGINT)  # the first one here
        assert requests.stop is signal.SIGINT


def test_handlers_are_put_back_and_the_requests_are_noted():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    with handled_signals() as requests:
        assert (requests.stop, requests.save) == (None, False)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (requests.stop, requests.save) == (None, True)
        os.kill(os.getpid(), signal.SIGTERM)
        assert requests.stop is signal.SIGTERM
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.set_wakeup_fd(-1) == -1
