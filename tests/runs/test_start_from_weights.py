"""Starts from weights alone: the position in the data, other dtypes, and a source that is still training."""

import json

import pytest
import torch
from small_run import SMALL
from test_starting import train

import ml
from ml.building import build_trainer
from ml.cli.dry_run import Machines, show
from ml.models.summary import size_text
from ml.training import FromRun, loop
from ml.training.checkpoints import atomic_folders, policy
from ml.training.checkpoints.holding import remove_unless_held
from ml.training.errors import RunError

ONE = ["Trainer.num_steps = 1", "Trainer.weight_average = None", "CosineSchedule.warmup_steps = 0"]
STILL = ["AdamW.learning_rate = 1e-30", *ONE]


@pytest.fixture
def load(folder):
    def load(*bindings, **options):
        text = f"TextFiles.paths = {str(folder / 'text.txt')!r}"
        return ml.load("recipes/tiny.gin", [*SMALL, *ONE, text, *bindings], **options)

    return load


@pytest.fixture
def first_rows(monkeypatch):
    """The first sequence of each step that is loaded."""
    rows = []
    original = loop.TrainLoop._load

    def watched(self, step, skipped):
        batches = original(self, step, skipped)
        rows.append(batches[0].tokens[0].tolist())
        return batches

    monkeypatch.setattr(loop.TrainLoop, "_load", watched)
    return rows


@pytest.mark.parametrize("state", ["weights", "average"])
def test_the_data_continues_where_the_other_run_stopped(load, run, tmp_path, first_rows, state):
    config = load(init_from=run, init_step=2, init_state=state)
    tuned, printed = train(config, tmp_path / "run")
    dataset = build_trainer(config).open_data().training
    assert first_rows == [dataset.batch(8, 1).tokens[0].tolist()]
    assert "the data continues after the 8 sequences that run has consumed" in printed
    assert json.loads((tuned.checkpoint() / "training.json").read_text())["sequences"] == 12
    again, _ = train(load(init_from=tuned), tmp_path / "again")
    assert first_rows[1] == dataset.batch(12, 1).tokens[0].tolist()
    assert json.loads((again.checkpoint() / "training.json").read_text())["sequences"] == 16


OTHERS = {
    "told to start": ("FromRun.data_position = 'start'", r"\(FromRun.data_position = 'start'\)"),
    "other data": ("TextData.validation_fraction = 0.2", "it is not the data of that run"),
    "another seed": ("Trainer.seed = 3", "in another order or sequence length"),
    "another length": ("Trainer.sequence_length = 32", "in another order or sequence length"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_the_data_starts_at_its_first_sequence_otherwise(load, run, tmp_path, first_rows, case):
    binding, reason = OTHERS[case]
    config = load(binding, init_from=run)
    _, printed = train(config, tmp_path / "run")
    assert first_rows == [build_trainer(config).open_data().training.batch(0, 1).tokens[0].tolist()]
    (line,) = [line for line in printed.splitlines() if line.startswith("the data starts at its first sequence")]
    assert line.endswith(reason.replace("\\", ""))


def test_a_checkpoint_that_does_not_know_the_order_continues_by_the_hash_of_its_data(load, run, tmp_path, monkeypatch):
    monkeypatch.setattr("ml.training.run_data.RunData.order_sha256", lambda self: None)
    old, _ = train(load("Trainer.num_steps = 2"), tmp_path / "old")
    monkeypatch.undo()
    assert "the data continues after the 8 sequences" in train(load(init_from=old), tmp_path / "new")[1]


DTYPES = {"bfloat16": "@PureBFloat16", "float32": "@Float32"}


@pytest.mark.parametrize(("there", "here"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_weights_of_another_dtype_are_converted_and_reported(load, tmp_path, there, here):
    source, _ = train(load(f"Trainer.precision = {DTYPES[there]}"), tmp_path / "source")
    config = load(*STILL, f"Trainer.precision = {DTYPES[here]}", init_from=source)
    run, printed = train(config, tmp_path / "run")
    ours, theirs = (dict(each.build().named_parameters()) for each in (run, source))
    assert {str(tensor.dtype) for tensor in ours.values()} == {f"torch.{here}"}
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name].to(tensor.dtype)), name
    assert f"{len(ours)} weights are converted from {there} to {here}" in printed
    same = load(f"Trainer.precision = {DTYPES[here]}", init_from=run)
    assert "converted" not in train(same, tmp_path / "same")[1]


def test_a_source_that_trains_on_keeps_the_checkpoint_until_it_is_read(load, run, tmp_path, monkeypatch):
    """The other run tries to remove its checkpoint between finding it and reading it."""
    source, _ = train(load("Trainer.num_steps = 2", "Checkpoints.keep = None", "Checkpoints.every = 1"), tmp_path / "s")
    checkpoint = source.checkpoint(1)
    removed = []
    open_data = ml.training.Trainer.open_data

    def removing(trainer):
        removed.append(remove_unless_held(checkpoint))
        return open_data(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(ml.training.Trainer, "open_data", removing)
        train(load(init_from=source, init_step=1), tmp_path / "run")
    assert removed == [False]
    assert remove_unless_held(checkpoint)


def test_a_checkpoint_that_is_removed_while_it_is_looked_for_gives_way_to_the_next(load, run, tmp_path, monkeypatch):
    source, _ = train(load("Trainer.num_steps = 2", "Checkpoints.keep = None", "Checkpoints.every = 1"), tmp_path / "s")
    damage = policy.damage

    def removed_meanwhile(path):
        if path.name == "step_2":
            path.rename(path.with_name(".step_2.removed"))  # on a file system without locks
        return damage(path)

    monkeypatch.setattr(policy, "damage", removed_meanwhile)
    assert FromRun(path=str(source.path)).open().checkpoint.step == 1
    with pytest.raises(RunError, match="there is no checkpoint of step 2"):
        FromRun(path=str(source.path), step=2).open()


def test_the_files_of_a_source_are_hashed_once(load, run, tmp_path, monkeypatch):
    hashed = []
    sha256_of_file = atomic_folders.sha256_of_file

    def watched(path):
        hashed.append(path)
        return sha256_of_file(path)

    monkeypatch.setattr(atomic_folders, "sha256_of_file", watched)
    taught = ["Trainer.distillation = @Distillation", f"Distillation.teacher = {str(run.path)!r}"]
    train(load(*taught), tmp_path / "taught")
    config = load(init_from=run)
    tensors = run.checkpoint() / "__0_0.distcp"
    before = hashed.count(tensors)
    train(config, tmp_path / "run")
    assert hashed.count(tensors) - before == 1
    assert before == 2  # that of the teacher, and `checkpoint` above


@pytest.mark.parametrize(("device_memory", "shown"), [(None, ""), (2**21, ", of its 2.0 MiB")])
def test_a_dry_run_subtracts_the_weights_of_a_teacher(load, run, tmp_path, capsys, device_memory, shown):
    taught = ["Trainer.distillation = @Distillation", f"Distillation.teacher = {str(run.path)!r}"]
    size = sum(weight.nbytes for weight in run.build().parameters())
    show(load(*taught), str(tmp_path / "taught"), None, Machines(device_memory=device_memory))
    printed = capsys.readouterr().out
    assert f"frozen model      {size_text(size)} of weights on each device besides{shown}\n" in printed
    assert (f"into {size_text(2**21 - size)}" in printed) == (device_memory is not None)
