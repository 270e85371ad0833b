"""An extension that is killed at any of its writes: the same command, and the earlier one, resume."""

import contextlib
import io
import shutil

import pytest
from small_run import SMALL

import ml
from ml.config import compare
from ml.run_files import segment_folders
from ml.runs import segments
from ml.runs.segments import current_segment
from ml.training import RunFolder, run_folder
from ml.training.checkpoints.weight_files import read_weights
from ml.training.history import read_starts
from ml.training.metrics.throughput import MACHINE_METRICS

CONSTANT = ["Trainer.schedule = @ConstantSchedule", "Trainer.validation = None", "Trainer.weight_average = None"]
LONGER = ["Trainer.num_steps = 5", "Trainer.batch_size = 2", "AdamW.learning_rate = 0.02"]


class Killed(BaseException):
    """Ends a start as SIGKILL would: nothing after it is written."""


@pytest.fixture(scope="module")
def configs(folder):
    data = f"TextFiles.paths = {str(folder / 'text.txt')!r}"
    bindings = [*(one for one in SMALL if "weight_average" not in one), *CONSTANT, data]
    return ml.load("recipes/tiny.gin", bindings), ml.load("recipes/tiny.gin", [*bindings, *LONGER])


@pytest.fixture(scope="module")
def before(configs, tmp_path_factory):
    path = tmp_path_factory.mktemp("killed") / "run"
    ml.train(configs[0], path, device="cpu", stream=io.StringIO())
    return path


def train(config, path, **options):
    return ml.train(config, path, device="cpu", stream=io.StringIO(), **options)


def learned(run):
    metrics = [{k: v for k, v in record.items() if k not in MACHINE_METRICS} for record in run.metrics()]
    model = ml.build(run.config)
    read_weights(run.checkpoint(), model)
    return metrics, [parameter.tolist() for parameter in model.parameters()]


def killing(monkeypatch, number):
    """Kills after the write of a number, from 1."""
    counted = []

    def wrapped(write):
        def wrapper(*arguments):
            write(*arguments)
            counted.append(write)
            if len(counted) == number:
                raise Killed

        return wrapper

    monkeypatch.setattr(run_folder, "write_atomically", wrapped(run_folder.write_atomically))
    monkeypatch.setattr(run_folder, "append_start", wrapped(run_folder.append_start))
    monkeypatch.setattr(segments, "write_atomically", wrapped(segments.write_atomically))


def test_an_extension_killed_at_any_write_is_resumed_by_the_same_command(configs, before, tmp_path, monkeypatch):
    original, longer = configs
    undisturbed = train(longer, shutil.copytree(before, tmp_path / "undisturbed"), extend=True)
    expected, number = learned(undisturbed), 0
    while True:
        number += 1
        path = shutil.copytree(before, tmp_path / f"killed_{number}")
        with monkeypatch.context() as patch:
            killing(patch, number)
            with contextlib.suppress(Killed):
                train(longer, path, extend=True)
                break
        again = train(longer, path, extend=True)
        assert learned(again) == expected, number
        assert list(segment_folders(path)) == [0, 4]
        assert current_segment(RunFolder(path)) == 4
        first = RunFolder(segment_folders(path)[0]).operative_config()
        assert not compare(first, original.operative)
        assert [start["segment"] for start in read_starts(path / "history.jsonl")][-1] == 4
    assert number > 10  # the history, three files of each segment, the configuration, the environment, metrics


@pytest.mark.parametrize("number", [1, 4, 7, 8])
def test_an_extension_killed_before_it_is_in_force_is_taken_back_by_the_earlier_command(
    configs, before, tmp_path, monkeypatch, number
):
    original, longer = configs
    path = shutil.copytree(before, tmp_path / "run")
    with monkeypatch.context() as patch:
        killing(patch, number)
        with pytest.raises(Killed):
            train(longer, path, extend=True)
    run = train(original, path)
    assert run.config == original
    assert set(segment_folders(path)) <= {0}
    assert current_segment(RunFolder(path)) == 0
