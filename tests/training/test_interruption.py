"""Signals, sent to a real process."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from ml.training.signals import noted_signals

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
def test_a_signal_saves_and_leaves_cleanly_and_the_run_goes_on_from_there(begin, tmp_path, number):
    process = begin(ENDLESS, "Checkpoints.every = None")
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "and saved; the same command with --run_dir=" in output
    (checkpoint,) = (tmp_path / "run/checkpoints").iterdir()
    step = json.loads((checkpoint / "training.json").read_text())["step"]
    assert f"Outcome(step={step}, is_finished=False)" in output

    again = begin(ENDLESS, "Checkpoints.every = None")
    again.send_signal(number)
    output, errors = again.communicate(timeout=30)
    assert f"resuming from {checkpoint}" in output, errors


@pytest.mark.slow
def test_a_process_that_is_killed_at_any_moment_ends_as_if_it_had_not_been(begin, tmp_path):
    bindings = ["Trainer.num_steps = 150", "Trainer.log_every = 1", "Checkpoints.every = 3", "Checkpoints.keep = 2"]
    expected = begin(*bindings)
    expected.communicate(timeout=60)
    (tmp_path / "run").rename(tmp_path / "undisturbed")
    for pause in (0.0, 0.07, 0.31):
        process = begin(*bindings)
        time.sleep(pause)
        process.kill()
        process.communicate()
    process = begin(*bindings)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    runs = [tmp_path / name / "checkpoints/step_150/__0_0.distcp" for name in ("run", "undisturbed")]
    assert runs[0].read_bytes() == runs[1].read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 151))


def test_a_second_ctrl_c_leaves_at_once():
    program = """if True:
        import time
        from ml.training.signals import noted_signals
        with noted_signals() as requests:
            print("ready", flush=True)
            while True:
                time.sleep(0.01)
                if requests.stop:
                    print("noted", flush=True)
    """
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "noted\n"
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert process.returncode == -signal.SIGINT


def test_handlers_are_put_back_and_the_requests_are_noted():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    with noted_signals() as requests:
        assert (requests.stop, requests.save) == (None, False)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (requests.stop, requests.save) == (None, True)
        os.kill(os.getpid(), signal.SIGTERM)
        assert requests.stop is signal.SIGTERM
    assert [signal.getsignal(number) for number in numbers] == before
