"""Trackers, read back with the readers of their tools."""

import ast
import importlib
import json
import os
import signal
import struct
import sys
import textwrap
import time
from typing import ClassVar

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter
from test_resume import stop_after
from warm_python import run_python

import ml
from ml.api import build_trainer
from ml.config import configurable
from ml.metric_names import scalars
from ml.training import RunError, RunFolder, TensorBoard, Tracker, WeightsAndBiases, loop, train
from ml.training.trackers.weights_and_biases import effective_parameters

wandb_internal_pb2 = pytest.importorskip("wandb.proto.wandb_internal_pb2", reason="needs wandb")

BOTH = ["Trainer.trackers = [@TensorBoard, @WeightsAndBiases]", "WeightsAndBiases.mode = 'offline'"]


def in_tensorboard(folder):
    """Steps and values by name, as TensorBoard shows them."""
    events = EventAccumulator(str(folder.path / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    texts = {
        tag: [(e.step, e.tensor_proto.string_val[0].decode()) for e in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }
    return found, texts


def records_of(file):
    """The records of a .wandb file: a header of 7 bytes, then the log format of LevelDB, in blocks of 32 KiB."""
    content, place, parts = file.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while place + 7 <= len(content):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


def in_wandb(folder):
    """Returns the record of the run and the logged metrics, in order, of the offline runs."""
    run, history = None, []
    for file in sorted((folder.path / "wandb").glob("offline-run-*/*.wandb")):
        for record in records_of(file):
            if record.WhichOneof("record_type") == "run":
                run = record.run
            elif record.WhichOneof("record_type") == "history":
                items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                history.append({k: v for k, v in items.items() if not k.startswith("_") or k == "_step"})
    return run, history


def expected_values(folder, name):
    return [(record["step"], record[name]) for record in folder.metrics() if name in record]


PROGRAM = textwrap.dedent(
    """
    import os, signal, sys, torch
    import ml
    from ml.training import loop

    take_step, deadly = loop.train_step, int(sys.argv[2])

    def dies(state, *rest):
        if state.step == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return take_step(state, *rest)

    loop.train_step = dies
    ml.train(ml.load(bindings=sys.argv[3:]), sys.argv[1])
    """
)


def in_a_process(folder, bindings, deadly=-1):
    """Trains in a separate process that is killed before step `deadly + 1`; wandb leaves threads and a service."""
    arguments = ("-c", PROGRAM, folder.path, str(deadly), *bindings)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    done = run_python(*arguments, cwd=folder.path.parent, env=environment, timeout=120)
    assert done.returncode == (0 if deadly < 0 else -signal.SIGKILL), done.stderr


def indented(text):
    return textwrap.indent(text, "    ", lambda line: True)


@pytest.fixture
def run_whole(tiny_bindings, tmp_path):
    """Trains as train.py does, with all the files of a run."""

    def run(*bindings, name="run"):
        folder = RunFolder(tmp_path / name)
        ml.train(ml.load(bindings=[*tiny_bindings, *bindings]), folder.path)
        return folder

    return run


def test_tensorboard_shows_every_number_by_step_and_the_configuration(run_whole):
    folder = run_whole("Trainer.trackers = [@TensorBoard]", "Trainer.norms = @Norms")
    shown, texts = in_tensorboard(folder)
    names = {name for record in folder.metrics() for name in scalars(record)}
    assert set(shown) == names
    assert {"loss", "mfu", "validation_bits_per_byte", "grad_norms/decoder.block_1"} <= names
    for name in ("loss", "learning_rate", "validation_loss", "data_wait"):
        steps, values = zip(*expected_values(folder, name), strict=True)
        assert [step for step, _ in shown[name]] == list(steps)
        assert [value for _, value in shown[name]] == pytest.approx(values, rel=1e-6)  # TensorBoard keeps float32
    ((step, text),) = texts["operative_config/text_summary"]
    assert step == 0
    assert text == indented(folder.operative_config())


@pytest.mark.slow
def test_wandb_offline_holds_every_number_and_the_parameters(tiny_bindings, tmp_path):
    settings = {"project": "'letters'", "entity": "'us'", "name": "'small'"}
    bindings = [f"WeightsAndBiases.{name} = {value}" for name, value in settings.items()]
    folder = RunFolder(tmp_path / "run")
    in_a_process(folder, [*tiny_bindings, *BOTH, *bindings])
    run, history = in_wandb(folder)
    assert (run.project, run.entity, run.display_name) == ("letters", "us", "small")
    assert run.run_id == (folder.path / "wandb/run_id.txt").read_text()
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["AdamW.learning_rate"] == 1e-2
    assert config["DecoderBlock.mixer"] == "@Attention"
    assert [line.pop("_step") for line in history] == [record["step"] for record in folder.metrics()]
    for line, record in zip(history, folder.metrics(), strict=True):
        assert line == pytest.approx(scalars(record))


@pytest.mark.slow
def test_a_killed_and_resumed_run_shows_each_step_once(tiny_bindings, tmp_path):
    bindings = [*tiny_bindings, *BOTH, "Trainer.log_every = 1"]
    folder = RunFolder(tmp_path / "run")
    for deadly in (3, 6, -1):  # checkpoints are of steps 4, 8 and 12
        in_a_process(folder, bindings, deadly)
    shown, texts = in_tensorboard(folder)
    losses = expected_values(folder, "loss")
    assert [step for step, _ in losses] == list(range(1, 13))
    assert [step for step, _ in shown["loss"]] == list(range(1, 13))
    assert [value for _, value in shown["loss"]] == pytest.approx([value for _, value in losses], rel=1e-6)
    assert [text for _, text in texts["operative_config/text_summary"]] == [indented(folder.operative_config())]
    run, history = in_wandb(folder)
    assert [(line["_step"], line["loss"]) for line in history] == losses
    assert len(list((folder.path / "wandb").glob("offline-run-*"))) == 1
    assert run.run_id == (folder.path / "wandb/run_id.txt").read_text()


def test_tensorboard_files_made_in_one_second_are_read_in_order(tiny, run_in, monkeypatch):
    bindings = ["Trainer.trackers = [@TensorBoard]", "Trainer.log_every = 1", "Trainer.validation = None"]
    with monkeypatch.context() as patch:
        for steps in (2, 3):
            stop_after(patch, steps)
            run_in(tiny(*bindings))
    folder, _, _ = run_in(tiny(*bindings))
    files = [path.name for path in (folder.path / "tensorboard").iterdir()]
    assert len({name.split(".")[3] for name in files}) == len(files) == 3
    shown, _ = in_tensorboard(folder)
    assert [step for step, _ in shown["loss"]] == list(range(1, 13))


def test_a_finished_run_is_not_tracked_again(tiny, run_in):
    folder, _, _ = run_in(tiny("Trainer.trackers = [@TensorBoard]"))
    before = sorted((folder.path / "tensorboard").iterdir())
    run_in(tiny("Trainer.trackers = [@TensorBoard]"))
    assert sorted((folder.path / "tensorboard").iterdir()) == before


@configurable
class Failing(Tracker):
    """Fails where it is told to, and counts what it is asked."""

    calls: ClassVar[list[str]] = []

    def __init__(self, fails_in: str = "log"):
        self.fails_in = fails_in

    def _called(self, name):
        self.calls.append(name)
        if name == self.fails_in:
            raise ConnectionError("the network is down")

    def check(self):
        self.calls.clear()

    def start(self, run, step):
        self._called("start")

    def log(self, record):
        self._called("log")

    def close(self, failed):
        self._called(f"close, failed={failed}")


def test_a_failing_tracker_is_named_once_and_the_others_continue(tiny, run_in):
    undisturbed, _, _ = run_in(tiny(), "undisturbed")
    folder, outcome, printed = run_in(tiny("Trainer.trackers = [@Failing, @TensorBoard]"))
    assert outcome.is_finished
    assert Failing.calls == ["start", "log"]
    assert printed.count("Failing failed and is disabled") == 1
    assert "ConnectionError: the network is down" in printed
    assert expected_values(folder, "loss") == expected_values(undisturbed, "loss")
    shown, _ = in_tensorboard(folder)
    assert [step for step, _ in shown["loss"]] == [1, 2, 4, 5, 6, 8, 10, 12]


def test_a_disk_that_takes_no_more_ends_tensorboard_and_not_the_run(tiny, run_in, monkeypatch):
    written = []

    def full(self, data):
        written.append(data)
        if len(written) > 20:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordWriter, "write", full)
    monkeypatch.setattr("threading.excepthook", lambda _: None)  # the writer's own thread ends with the error
    _, outcome, printed = run_in(tiny("Trainer.trackers = [@TensorBoard]"))
    assert outcome.is_finished
    assert printed.count("TensorBoard failed and is disabled") == 1
    assert "No space left on device" in printed


def test_what_was_logged_is_in_the_file_when_that_returns(tmp_path, monkeypatch):
    """A checkpoint may follow, and a kill."""

    def slow(self, data):
        time.sleep(0.02)
        write(self, data)

    write = RecordWriter.write
    monkeypatch.setattr(RecordWriter, "write", slow)
    folder, tracker = RunFolder(tmp_path), TensorBoard()
    tracker.start(folder, 0)
    tracker.log({"step": 1} | {f"value_{index}": float(index) for index in range(8)})
    shown, _ = in_tensorboard(folder)
    tracker.close(failed=False)
    assert shown == {f"value_{index}": [(1, float(index))] for index in range(8)}


def test_a_tracker_that_cannot_start_stops_a_new_run_but_not_a_resumed_one(tiny, run_in, tmp_path):
    bindings = ["Trainer.trackers = [@Failing]", "Failing.fails_in = 'start'"]
    with pytest.raises(RunError, match="Failing cannot start: the network is down"):
        run_in(tiny(*bindings))
    assert RunFolder(tmp_path / "run").metrics() == []
    run_in(tiny("Trainer.num_steps = 4"))
    _, outcome, printed = run_in(tiny(*bindings))
    assert outcome == (12, True)
    assert printed.count("Failing failed and is disabled") == 1


def test_a_tracker_is_told_whether_the_run_failed(tiny, run_in, monkeypatch):
    run_in(tiny("Trainer.trackers = [@Failing]", "Failing.fails_in = 'nothing'"), "fine")
    assert Failing.calls[-1] == "close, failed=False"
    monkeypatch.setattr(loop, "train_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_in(tiny("Trainer.trackers = [@Failing]", "Failing.fails_in = 'nothing'"))
    assert Failing.calls == ["start", "close, failed=True"]


@pytest.mark.parametrize(
    ("tracker", "missing", "loaded"),
    [
        (TensorBoard, "tensorboard", "torch.utils.tensorboard"),
        (WeightsAndBiases, "wandb", "wandb"),
    ],
    ids=["TensorBoard", "WeightsAndBiases"],
)
def test_a_library_that_is_missing_is_named_before_anything_is_written(
    tiny_bindings, tmp_path, monkeypatch, tracker, missing, loaded
):
    importlib.import_module(loaded)
    monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, missing, None)
    config = ml.load(bindings=[*tiny_bindings, f"Trainer.trackers = [@{tracker.__name__}]"])
    with pytest.raises(RunError, match=rf"needs the library {missing}: pip install 'juniper-trainer\[{missing}\]'"):
        ml.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    trainer = build_trainer(config)
    with pytest.raises(RunError, match="pip install"):
        train(trainer, trainer.open_data(), RunFolder(tmp_path / "run"), torch.device("cpu"))
    assert not (tmp_path / "run").exists()


class Service:
    """Stands for wandb online, which knows the steps of a run before `step` already."""

    def __init__(self, step):
        self.step = step
        self.options = None
        self.logged = []

    def Settings(self, **options):
        return options

    def init(self, **options):
        self.options = options
        return self

    def log(self, values, step, commit):
        assert commit  # else the step would be held back until the next one
        self.logged.append(step)

    def finish(self, exit_code):
        self.exit_code = exit_code


@pytest.mark.parametrize(("known", "sent"), [(3, [4, 5, 6, 8, 10, 12]), (9, [10, 12])])
def test_wandb_online_is_sent_the_steps_that_it_lacks(tiny, run_in, monkeypatch, known, sent):
    run_in(tiny("Trainer.num_steps = 4"))
    service = Service(known)
    monkeypatch.setitem(sys.modules, "wandb", service)
    folder, _, _ = run_in(tiny("Trainer.trackers = [@WeightsAndBiases]"))
    assert service.logged == sent
    assert service.exit_code == 0
    options = service.options
    assert (options["mode"], options["resume"], options["dir"]) == ("online", "allow", str(folder.path))
    assert options["name"] == "run"
    assert options["id"] == (folder.path / "wandb/run_id.txt").read_text()


def test_numbers_of_a_record_are_found_at_any_depth():
    record = {"step": 3, "loss": 2.5, "tokens": 7, "note": "text", "routers": {"a.b": {"idle": 0.5}}}
    assert scalars(record) == {"loss": 2.5, "tokens": 7, "routers/a.b/idle": 0.5}


def test_effective_parameters_name_places_only_where_they_differ(tiny_bindings, tmp_path):
    bindings = ["query/Linear.bias = False", "block_1/DecoderBlock.dropout = 0.5", "Trainer.trackers = []"]
    config = ml.load(bindings=[*tiny_bindings, *bindings])
    folder = RunFolder(tmp_path)
    folder.write_config(config.text, config.operative, config.provenance())
    found = effective_parameters(folder.provenance)
    assert found["AdamW.betas"] == (0.9, 0.95)
    assert found["decoder/block_0_to_1/mixer/query/Linear.bias"] is False
    assert found["decoder/block_0/DecoderBlock.dropout"] == 0.2
    assert found["decoder/block_1/DecoderBlock.dropout"] == 0.5
    assert found["Trainer.validation"] == "@Validation"
    # Against the records, which have one of each parameter of each module.
    for record in config.records():
        name = f"{record.configurable}.{record.parameter}"
        if name in found:
            assert str(found[name]) == str(literal(record.value)), name
    assert effective_parameters(tmp_path / "nowhere.json") == {}


def literal(text):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
