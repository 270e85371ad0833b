"""Recording windows of a few steps: the profiler and the GPU memory snapshot."""

import gzip
import json
import pickle
import time

import pytest
import torch
from test_resume import stop_after

import ml
from ml.training import MemorySnapshot, Profiler, RunError, RunFolder, loop, train

CPU = torch.device("cpu")
WINDOW = ["Trainer.profiler = @Profiler", "Profiler.first_step = 5", "Profiler.num_steps = 3"]


def trace_of(file):
    with gzip.open(file, "rt") as text:
        return json.load(text)["traceEvents"]


def steps_in(file):
    return sum(event.get("name", "").startswith("Optimizer.step#") for event in trace_of(file))


def files_of(folder):
    return sorted(path.name for path in (folder.path / "profiles").iterdir())


def test_a_window_leaves_a_trace_of_its_steps_and_a_table(tiny, run_in):
    folder, outcome, printed = run_in(tiny(*WINDOW, "Profiler.num_rows = 7"))
    assert outcome.is_finished
    assert files_of(folder) == ["steps_5_to_7.json.gz", "steps_5_to_7.txt"]
    assert f"recorded steps 5 to 7: {folder.path / 'profiles/steps_5_to_7'}.*" in printed
    assert steps_in(folder.path / "profiles/steps_5_to_7.json.gz") == 3
    table = (folder.path / "profiles/steps_5_to_7.txt").read_text()
    assert "Self CPU time total" in table
    assert len([line for line in table.splitlines() if line.lstrip().startswith(("aten::", "autograd::"))]) <= 7


def test_recording_changes_nothing_in_what_is_learned(tiny, run_in):
    recorded, _, _ = run_in(tiny(*WINDOW), "recorded")
    plain, _, _ = run_in(tiny(), "plain")
    losses = [[(record["step"], record["loss"]) for record in run.metrics()] for run in (recorded, plain)]
    assert losses[0] == losses[1]


def test_the_time_that_writing_takes_is_not_in_the_speed(tiny, run_in, monkeypatch):
    class Slow(Profiler):
        def begin(self, device):
            return lambda path: time.sleep(3.0)

    trainer = tiny("Trainer.log_every = 12", "Trainer.validation = None", "Checkpoints.every = None")
    vars(trainer)["profiler"] = Slow(12, first_step=5, num_steps=3)
    folder, _, _ = run_in(trainer)
    last = folder.metrics()[-1]
    assert last["seconds"] > 3.0
    assert last["tokens_per_second"] > 11 * 4 * 16 / 3.0  # all steps since the first, if that time were in it


@pytest.mark.parametrize(
    ("option", "shown"),
    [
        ("Profiler.with_stack = True", lambda event: event.get("cat") == "python_function"),
        ("Profiler.record_shapes = True", lambda event: "Input Dims" in event.get("args", {})),
        ("Profiler.profile_memory = True", lambda event: event.get("name") == "[memory]"),
    ],
)
def test_what_is_recorded_is_what_was_asked_for(tiny, run_in, option, shown):
    for bindings, expected in (([], False), ([option], True)):
        folder, _, _ = run_in(tiny(*WINDOW, "Profiler.num_steps = 1", *bindings), f"run_{expected}")
        events = trace_of(folder.path / "profiles/steps_5_to_5.json.gz")
        assert any(map(shown, events)) == expected


def test_a_run_that_stops_inside_the_window_records_the_rest_after_resuming(tiny, run_in, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        folder, _, _ = run_in(tiny(*WINDOW))
    assert files_of(folder) == ["steps_5_to_5.json.gz", "steps_5_to_5.txt"]
    folder, outcome, _ = run_in(tiny(*WINDOW))
    assert outcome.is_finished
    names = ["steps_5_to_5.json.gz", "steps_5_to_5.txt", "steps_6_to_7.json.gz", "steps_6_to_7.txt"]
    assert files_of(folder) == names
    assert [steps_in(folder.path / "profiles" / name) for name in names[::2]] == [1, 2]


def test_a_run_resumed_after_the_window_records_nothing(tiny, run_in, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 8)
        run_in(tiny())
    folder, _, _ = run_in(tiny(*WINDOW))
    assert not (folder.path / "profiles").exists()


@pytest.mark.parametrize("window", ["Profiler", "MemorySnapshot"])
@pytest.mark.parametrize(
    ("first_step", "num_steps", "message"),
    [
        (11, 3, "first_step begins a window that ends at step 13, and the run at step 12"),
        (0, 3, "first_step must be positive, not 0"),
        (5, 0, "num_steps must be positive, not 0"),
    ],
)
def test_a_window_that_is_not_in_the_run_is_refused(tiny, window, first_step, num_steps, message):
    place = {"Profiler": "profiler", "MemorySnapshot": "memory_snapshot"}[window]
    bindings = [
        f"Trainer.{place} = @{window}",
        f"{window}.first_step = {first_step}",
        f"{window}.num_steps = {num_steps}",
    ]
    with pytest.raises(ml.ConfigError, match=message):
        tiny(*bindings)


def test_a_failed_write_is_reported_and_training_continues(tiny, run_in, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/profiles").write_text("in the way")
    _, outcome, printed = run_in(tiny(*WINDOW))
    assert outcome.is_finished
    assert "steps 5 to 7 were recorded and could not be written" in printed
    assert not torch.autograd._profiler_enabled()  # it ends all the same


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_memory_snapshot_on_a_machine_without_cuda_is_refused_before_anything_is_written(tiny_bindings, tmp_path):
    config = ml.load(bindings=[*tiny_bindings, "Trainer.memory_snapshot = @MemorySnapshot"])
    with pytest.raises(RunError, match="this machine has none"):
        ml.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def recorder(monkeypatch):
    """Stands for CUDA's recorder of allocations; returns what it was asked."""
    calls = []
    monkeypatch.setattr(MemorySnapshot, "check", lambda self: None)
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda **options: calls.append(options))

    def dump(path):
        with open(path, "wb") as file:
            pickle.dump({"calls": list(calls)}, file)

    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", dump)
    return calls


MEMORY = [
    "Trainer.memory_snapshot = @MemorySnapshot",
    "MemorySnapshot.first_step = 2",
    "MemorySnapshot.max_entries = 77",
]


def test_a_memory_snapshot_is_of_its_window_alone(tiny, run_in, recorder):
    folder, _, _ = run_in(tiny(*MEMORY))
    assert files_of(folder) == ["memory_steps_2_to_4.pickle"]
    assert recorder == [{"max_entries": 77}, {"enabled": None}]


def test_a_step_that_fails_inside_the_window_writes_its_memory(tiny, run_in, recorder, monkeypatch, tmp_path):
    def out_of_memory(state, *rest):
        if state.step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return take_step(state, *rest)

    take_step = loop.train_step
    monkeypatch.setattr(loop, "train_step", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        run_in(tiny(*MEMORY))
    assert files_of(RunFolder(tmp_path / "run")) == ["memory_steps_2_to_3.pickle"]
    assert recorder[-1] == {"enabled": None}


@pytest.mark.gpu
def test_a_gpu_gives_a_snapshot_and_a_trace_of_its_kernels(tiny, tmp_path):
    trainer = tiny(*WINDOW, *MEMORY)
    folder = RunFolder(tmp_path / "run")
    train(trainer, trainer.open_data(), folder, torch.device("cuda"))
    snapshot = pickle.loads((folder.path / "profiles/memory_steps_2_to_4.pickle").read_bytes())
    assert any(snapshot["device_traces"])
    assert any(event.get("cat") == "kernel" for event in trace_of(folder.path / "profiles/steps_5_to_7.json.gz"))
