"""Asynchronous checkpoints."""

import io
import threading

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from saved import saved_tensors, trained_model

import ml
from ml.errors import UserError
from ml.training import Checkpoints, RunError, RunFailure, train
from ml.training.checkpoints import saver
from ml.training.checkpoints.policy import newest_checkpoint
from ml.training.checkpoints.state_files import Snapshot
from ml.training.checkpoints.weight_files import read_weights

CPU = torch.device("cpu")


def taken(step, **tensors):
    return Snapshot(step, tensors, {"step": step}, None)


@pytest.fixture
def gate(monkeypatch):
    """Lets the thread write only once it is set."""
    gate, write = threading.Event(), saver.write_part

    def wait_and_write(*arguments):
        assert gate.wait(timeout=30)
        return write(*arguments)

    monkeypatch.setattr(saver, "write_part", wait_and_write)
    return gate


def test_what_is_written_is_the_state_at_the_time_of_the_call(tmp_path, gate):
    writer = Checkpoints().open(tmp_path, lambda: None)
    weight = torch.arange(5.0)
    writer.save(taken(1, weight=weight))
    weight.zero_()  # the next step
    assert not (tmp_path / "step_1").exists()
    gate.set()
    writer.wait()
    assert torch.equal(saved_tensors(tmp_path / "step_1")["weight"], torch.arange(5.0))


def test_the_next_save_waits_for_the_one_before(tmp_path, gate):
    writer = Checkpoints().open(tmp_path, lambda: None)
    weight = torch.zeros(3)
    writer.save(taken(1, weight=weight))
    threading.Timer(0.2, gate.set).start()
    weight += 1
    writer.save(taken(2, weight=weight))  # would overwrite the copy that is still to be written
    assert (tmp_path / "step_1/COMMITTED").exists()
    writer.close()
    assert saved_tensors(tmp_path / "step_1")["weight"].sum() == 0
    assert saved_tensors(tmp_path / "step_2")["weight"].sum() == 3


def test_metrics_are_on_the_disk_before_the_checkpoint_is_valid(tmp_path):
    committed = []
    writer = Checkpoints().open(tmp_path, lambda: committed.append((tmp_path / "step_1").exists()))
    writer.save(taken(1, weight=torch.zeros(1)))
    writer.close()
    assert committed == [False]
    assert newest_checkpoint(tmp_path, pytest.fail) == tmp_path / "step_1"


def test_a_failure_of_the_thread_is_raised_once_by_the_next_call(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    writer = Checkpoints().open(tmp_path, lambda: None)
    monkeypatch.setattr(saver, "write_part", fail)
    writer.save(taken(1, weight=torch.zeros(1)))
    writer.close()
    assert writer.has_failed
    with pytest.raises(RunFailure, match=r"of step 1 could not be written to .*: No space left on device"):
        writer.wait()
    assert not writer.has_failed
    writer.wait()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_saves_beside_training_leaves_what_one_does_that_waits(tiny, run_in):
    beside, _, _ = run_in(tiny("Checkpoints.every = 1"), "beside")
    waiting, _, _ = run_in(tiny("Checkpoints.every = 1", "Checkpoints.asynchronous = False"), "waiting")
    for step in range(1, 13):
        files = [run.checkpoints / f"step_{step}/__0_0.distcp" for run in (beside, waiting)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_needless_option_is_refused(tiny):
    with pytest.raises(ValueError, match=r"keep_every has no effect where Checkpoints.keep = None keeps all"):
        tiny("Checkpoints.keep_every = 3")


@pytest.fixture
def source(tiny, run_in):
    """The checkpoint of a run with two blocks and a separate head."""
    folder, _, _ = run_in(tiny("LanguageModel.tie_word_embeddings = False"), "source")
    return folder.checkpoints / "step_12"


UNTIED = "LanguageModel.tie_word_embeddings = False"


def test_weights_that_may_differ_stay_as_they_are_made_and_all_others_are_read(tiny, source):
    saved = {name.removeprefix("model/"): tensor for name, tensor in saved_tensors(source).items()}
    state = tiny(UNTIED, "Repeat.num_blocks = 3", "block_0/GatedMLP.intermediate_size = 24").start(CPU)
    made = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    kept, _ = read_weights(source, state.model, may_differ=["decoder.block_2.*", "*.block_0.mlp.*"])
    for name, parameter in state.model.named_parameters():
        is_new = "block_2" in name or "block_0.mlp" in name
        fits = not is_new or (name in saved and saved[name].shape == parameter.shape)
        assert (name in kept) == (not fits)
        assert torch.equal(parameter, saved[name] if fits else made[name]), name
    assert any("block_0.mlp" in name for name in kept)


def test_what_else_differs_is_listed_in_one_message(tiny, source):
    model = tiny("Repeat.num_blocks = 3", "GatedMLP.intermediate_size = 24", UNTIED).start(CPU).model
    with pytest.raises(RunError) as raised:
        read_weights(source, model, may_differ=["decoder.block_2.*"])
    message = str(raised.value)
    assert "block_2" not in message
    assert "of another shape:\n    decoder.block_0.mlp.down.weight: torch.float32 (16, " in message
    with pytest.raises(RunError, match=r"(?s)missing:\n    decoder.block_2.*of another shape"):
        read_weights(source, model)


def test_a_pattern_that_matches_nothing_is_an_error(tiny, source):
    with pytest.raises(RunError, match=r"no weight matches 'heda.\*' \(--init_may_differ\)"):
        read_weights(source, tiny(UNTIED).start(CPU).model, may_differ=["heda.*"])


def test_a_run_reports_its_initial_weights_and_the_missing_ones(tiny, run_in, source, tmp_path):
    folder = ml.training.RunFolder(tmp_path / "next")
    stream = io.StringIO()
    start = ["Trainer.initial_weights = @FromRun", f"FromRun.path = {str(source)!r}"]
    trainer = tiny(UNTIED, "Repeat.num_blocks = 3", *start, "FromRun.may_differ = ['decoder.block_2.*']")
    train(trainer, trainer.open_data(), folder, CPU, stream=stream)
    assert "16 weights keep their initialization: decoder.block_2." in stream.getvalue()


def saved_run(tmp_path, text_file, *bindings):
    """A finished run with the configuration in its folder, as `train.py` leaves it."""
    config = ml.load("recipes/tiny.gin", [f"TextFiles.paths = {str(text_file)!r}", "Trainer.num_steps = 5", *bindings])
    trainer, folder = ml.api.build_trainer(config), ml.training.RunFolder(tmp_path / "run")
    folder.create()
    folder.write_config(config.text, config.operative, config.provenance())
    train(trainer, trainer.open_data(), folder, CPU, stream=io.StringIO())
    return ml.open_run(folder.path), trainer


def test_weights_are_exported_alone(tmp_path, text_file):
    run, trainer = saved_run(tmp_path, text_file)
    assert run.export(tmp_path / "weights.safetensors") == len(load_file(tmp_path / "weights.safetensors"))
    exported = load_file(tmp_path / "weights.safetensors")
    for name, weight in trained_model(trainer, ml.training.RunFolder(run.path)).named_parameters():
        assert torch.equal(exported[name], weight)
    with pytest.raises(UserError, match="has no average of the weights"):
        run.export(tmp_path / "average.safetensors", average=True)
    with pytest.raises(UserError, match="has no average of the weights"):
        run.build(average=True)
    with pytest.raises(UserError, match=r"cannot write .*nowhere"):
        run.export(tmp_path / "nowhere/weights.safetensors")


def test_a_folder_is_trained_in_by_one_process_at_a_time(tiny, run_in, tmp_path):
    folder = ml.training.RunFolder(tmp_path / "run")
    folder.create()
    with folder.locked(), pytest.raises(RunError, match="another process is training in"):
        run_in(tiny())
    assert run_in(tiny())[1].is_finished


@pytest.mark.parametrize("precision", ["Float32", "PureBFloat16"])
def test_the_average_is_built_and_exported_in_the_place_of_the_weights(tmp_path, text_file, precision):
    bindings = (
        "Trainer.weight_average = @ExponentialMovingAverage",
        "block_0/DecoderBlock.lr_scale = 0.0",
        f"Trainer.precision = @{precision}",
    )
    run, trainer = saved_run(tmp_path, text_file, *bindings)
    saved = saved_tensors(run.checkpoint())
    built, last = run.build(average=True).state_dict(), run.build().state_dict()
    run.export(tmp_path / "average.safetensors", average=True)
    exported = load_file(tmp_path / "average.safetensors")
    for name, weight in built.items():
        averaged = saved.get(f"weight_average/{name}")
        assert (averaged is None) == ("block_0" in name)
        expected = last[name] if averaged is None else averaged
        assert expected.dtype == exported[name].dtype
        assert torch.equal(exported[name], expected)
        assert weight.dtype == trainer.precision.parameter_dtype
        assert torch.equal(weight, expected.to(weight.dtype))
    assert any(not torch.equal(weight, last[name]) for name, weight in built.items())


def test_torch_reads_a_checkpoint_without_us(tmp_path, text_file):
    run, trainer = saved_run(tmp_path, text_file)
    weights = dict(trained_model(trainer, ml.training.RunFolder(run.path)).named_parameters())
    into = {f"model/{name}": torch.zeros_like(weight) for name, weight in weights.items()}
    dcp.load(into, checkpoint_id=run.checkpoint(), no_dist=True)
    for name, weight in weights.items():
        assert torch.equal(into[f"model/{name}"], weight)
