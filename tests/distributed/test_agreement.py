"""Stops, saves and errors of one process, on which all processes agree in the same step."""

import contextlib
import io
import os
import signal

import pytest
from distributed_runs import built, squares
from processes import run_ranks

from ml.data import DataError
from ml.distributed import Layout
from ml.errors import OtherProcessFailed, RunFailure
from ml.training import RunFolder, train


class Acting:
    """A schedule during which rank 1 does something in step 3."""

    def __init__(self, schedule, action):
        self.schedule = schedule
        self.action = action

    def __call__(self, step):
        if step == 3:
            self.action()
        return self.schedule(step)


def run(world, folder, text_file, replace):
    trainer = built(text_file, ("Trainer.num_steps = 8", "Validation.every = None"))
    if world.rank == 1:
        replace(trainer)
    layout = Layout.of(world, trainer.mesh_sizes(world.size))
    with contextlib.closing(io.StringIO()) as stream:
        outcome = train(trainer, trainer.open_data(), RunFolder(folder), layout.device, layout=layout, stream=stream)
    return outcome.step, outcome.is_finished


def signaled(number):
    def replace(trainer):
        vars(trainer)["schedule"] = Acting(trainer.schedule, lambda: os.kill(os.getpid(), number))

    return replace


def lost_data(trainer):
    batches = trainer.batches

    def of_step(dataset, step, *part, consumed):
        if step == 4:
            raise DataError("text.txt is gone")
        return batches(dataset, step, *part, consumed=consumed)

    vars(trainer)["batches"] = of_step


def every_case(world, folder, text_file):
    stopped = run(world, f"{folder}/stopped", text_file, signaled(signal.SIGTERM))
    saved = run(world, f"{folder}/saved", text_file, signaled(signal.SIGUSR1))
    try:
        run(world, f"{folder}/lost", text_file, lost_data)
    except (OtherProcessFailed, RunFailure) as error:
        return stopped, saved, (type(error), str(error))
    raise AssertionError("trained without data")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agreement")
    (folder / "text.txt").write_text(squares(200))
    return folder, run_ranks(2, every_case, str(folder), str(folder / "text.txt"))


def test_all_stop_after_the_same_step(found):
    folder, ranks = found
    assert [stopped for stopped, _, _ in ranks] == [(3, False)] * 2
    assert RunFolder(folder / "stopped").metrics()[-1]["step"] == 3
    assert [path.name for path in RunFolder(folder / "stopped").checkpoints.iterdir()] == ["step_3"]


def test_all_save_where_one_is_asked_to(found):
    folder, ranks = found
    assert [saved for _, saved, _ in ranks] == [(8, True)] * 2
    # A request during step 3 is known to all before step 4.
    assert {path.name for path in RunFolder(folder / "saved").checkpoints.iterdir()} == {"step_4", "step_8"}


def test_data_that_one_process_loses_ends_all(found):
    folder, ranks = found
    (first, message), (kind, reason) = (problem for _, _, problem in ranks)
    assert kind is RunFailure
    assert "the data cannot be read after step 3" in reason
    assert "text.txt is gone" in reason
    assert first is OtherProcessFailed
    assert message == f"rank 1: {reason}"
    assert [record["step"] for record in RunFolder(folder / "lost").metrics()] == [1, 2, 3]
