"""Branches: new runs that continue the training of another one, against the run that did so itself."""

import io
import json
import shutil

import pytest
import torch
from small_run import SMALL
from test_launch import measured
from test_starting import dies_before_a_checkpoint, train

import ml
from ml.building import build_trainer
from ml.run_files import segment_folders
from ml.training import loop

CONSTANT = "Trainer.schedule = @ConstantSchedule"
QUICK = [
    "Trainer.validation = None",
    "Trainer.log_every = 1",
    "Checkpoints.keep = None",
    "CosineSchedule.warmup_steps = 1",
]
SHORT = ["Trainer.batch_size = 2", "Trainer.sequence_length = 16", "DecoderBlock.dropout = 0.1"]


@pytest.fixture(scope="module")
def load(folder):
    def load(*bindings, **options):
        return ml.load(
            "recipes/tiny.gin",
            [*SMALL, "Checkpoints.keep = None", f"TextFiles.paths = {str(folder / 'text.txt')!r}", *bindings],
            **options,
        )

    return load


@pytest.fixture(scope="module")
def whole(load, tmp_path_factory):
    """A run of four steps with a constant schedule and a checkpoint of step 2."""
    return train(load(CONSTANT), tmp_path_factory.mktemp("whole") / "run")[0]


def branch(load, source, *bindings, step=2, **options):
    return load(CONSTANT, *bindings, init_from=source, init_step=step, init_state="all", **options)


def tensors(run):
    return {**dict(run.build().state_dict()), **dict(run.build(average=True).state_dict())}


def assert_continues(ours, theirs, step):
    """Requires that a branch has the later metrics and the last weights of a run, bitwise."""
    assert measured(ours) == [record for record in measured(theirs) if record["step"] > step]
    expected = tensors(theirs)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors(ours).items())


def test_a_branch_without_changes_is_bitwise_the_run_itself(load, whole, tmp_path):
    run, printed = train(branch(load, whole), tmp_path / "branch")
    assert_continues(run, whole, 2)
    assert f"continuing the training of step 2 ({whole.path}/checkpoints/step_2, SHA-256 " in printed
    assert "with step 3; the data continues after 8 sequences" in printed
    assert "changed after" not in printed
    (start,) = run.history()
    assert (start["first_step"], start["segment"], start["changed"]) == (3, 0, [])
    assert json.loads((run.checkpoint() / "training.json").read_text())["sequences"] == 16


def test_a_run_of_20_continued_to_40_is_bitwise_the_run_of_40(folder, tmp_path):
    def load(*bindings, **options):
        text = f"TextFiles.paths = {str(folder / 'text.txt')!r}"
        return ml.load("recipes/tiny.gin", [*QUICK, *SHORT, text, CONSTANT, *bindings], **options)

    longer = "Trainer.num_steps = 40"
    expected, _ = train(load(longer), tmp_path / "expected")
    first, _ = train(load(), tmp_path / "first")
    branched, printed = train(load(longer, init_from=first, init_state="all"), tmp_path / "branch")
    assert (
        "changed after step 20 of the other run (- there, + here from now on):\n  - Trainer.num_steps = 20" in printed
    )
    assert branched.history()[0]["changed"] == ["- Trainer.num_steps = 20", "+ Trainer.num_steps = 40"]
    stream = io.StringIO()
    extended = ml.train(load(longer), first.path, extend=True, device="cpu", stream=stream)
    for run, taken in ((branched, 20), (extended, 0)):
        assert measured(run) == measured(expected)[taken:]
        theirs = expected.build().state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in run.build().state_dict().items())


def test_a_decay_branched_from_a_step_is_the_run_whose_schedule_had_it_there(load, tmp_path):
    decay = ["Trainer.schedule = @WarmupStableDecay", "WarmupStableDecay.warmup_steps = 1"]

    def config(num_steps, *more, **options):
        fraction = f"WarmupStableDecay.decay_fraction = {2 / num_steps}"
        return load(*decay, fraction, f"Trainer.num_steps = {num_steps}", *more, **options)

    stable, _ = train(config(8, "Trainer.stop_at_step = 4"), tmp_path / "stable")
    expected, _ = train(config(4), tmp_path / "expected")
    run, _ = train(config(4, init_from=stable, init_step=2, init_state="all"), tmp_path / "run")
    assert_continues(run, expected, 2)
    assert [record["learning_rate"] for record in run.metrics()] == pytest.approx([0.005 * 2 / 3, 0.005 / 3])


def test_another_batch_size_continues_at_the_next_sequence(load, whole, tmp_path, monkeypatch):
    taken = []
    original = loop.TrainLoop._load

    def watched(self, step, skipped):
        batches = original(self, step, skipped)
        taken.append((step, [row.tolist() for batch in batches for row in batch.tokens]))
        return batches

    monkeypatch.setattr(loop.TrainLoop, "_load", watched)
    train(branch(load, whole, "Trainer.batch_size = 6"), tmp_path / "run")
    dataset = build_trainer(load(CONSTANT)).open_data().training
    expected = [dataset.batch(number, 1).tokens[0].tolist() for number in range(8, 20)]
    assert [row for _, rows in sorted(taken) for row in rows] == expected
    assert [step for step, _ in sorted(taken)] == [3, 4]


def test_a_branch_is_resumed_and_extended_as_any_run_and_does_without_its_source(load, whole, tmp_path, monkeypatch):
    source = shutil.copytree(whole.path, tmp_path / "source")
    config = branch(load, source, "Checkpoints.every = None", "Trainer.validation = None")
    dies_before_a_checkpoint(config, tmp_path / "run", monkeypatch)
    run, printed = train(config, tmp_path / "run")
    assert "continuing the training" in printed
    assert [start["first_step"] for start in run.history()] == [3, 3]
    shutil.rmtree(source)
    longer = load(CONSTANT, "Trainer.num_steps = 5", "Trainer.validation = None")
    expected, _ = train(longer, tmp_path / "expected")
    stream = io.StringIO()
    more = ml.load(run.path / "operative_config.gin", ["Trainer.num_steps = 5"])
    extended = ml.train(more, run.path, extend=True, device="cpu", stream=stream)
    assert_continues(extended, expected, 2)
    assert list(segment_folders(run.path)) == [0, 4]


def test_a_branch_begun_again_with_another_configuration_has_one_segment(load, whole, tmp_path, monkeypatch):
    dies_before_a_checkpoint(branch(load, whole, "Checkpoints.every = None"), tmp_path / "run", monkeypatch)
    other = branch(load, whole, "AdamW.learning_rate = 0.01")
    with pytest.raises(ml.UserError, match="add extend to begin again with this configuration"):
        train(other, tmp_path / "run")
    run = ml.train(other, tmp_path / "run", extend=True, device="cpu", stream=io.StringIO())
    assert segment_folders(run.path) == {}
    assert [record["learning_rate"] for record in run.metrics()] == [0.01, 0.01]


@pytest.mark.parametrize("binding", ["LanguageModel.hidden_size = 48", "Trainer.seed = 3", "Trainer.optimizer = @Lion"])
def test_what_cannot_change_in_a_run_is_refused_by_name(load, whole, tmp_path, binding):
    with pytest.raises(
        ml.UserError, match=rf"{binding.split(' = ')[0]}.* cannot change in a run. Take the weights"
    ) as no:
        train(branch(load, whole, binding), tmp_path / "run")
    assert "training cannot continue from step 2" in str(no.value)
    assert f"+ {binding}" in str(no.value)
    assert not (tmp_path / "run").exists()


def test_a_moved_schedule_is_refused_with_phases_that_work_and_a_short_run_by_its_steps(load, run, tmp_path):
    options = {"init_from": run, "init_state": "all"}
    with pytest.raises(ml.UserError, match="the schedule is another one from step 2 on") as refused:
        train(load("Trainer.num_steps = 6", **options), tmp_path / "run")
    _, hold, _, rewarm = str(refused.value).split("\n\n")
    for name, text in {"hold": hold, "rewarm": rewarm}.items():
        made, printed = train(load("Trainer.num_steps = 6", text, **options), tmp_path / name)
        assert [record["step"] for record in made.metrics()] == [5, 6]
        assert "learning rate at step 4" in printed
    with pytest.raises(ml.UserError, match=r"4 steps have been taken: Trainer.num_steps must be at least that"):
        train(load("Trainer.num_steps = 3", **options), tmp_path / "run")


def test_a_mixture_with_other_weights_is_refused_with_those_before(load, folder, tmp_path):
    (tmp_path / "other.txt").write_text("nine eight seven six. " * 300)
    mixture = [
        CONSTANT,
        "Trainer.data = @Mixture",
        "Mixture.datasets = {'a': @TextData, 'b': @TextData}",
        f"b/TextFiles.paths = {str(tmp_path / 'other.txt')!r}",
    ]
    source, _ = train(load(*mixture, "Mixture.weights = {'a': 1.0, 'b': 3.0}"), tmp_path / "source")
    changed = [*mixture, "Mixture.weights = {'a': 3.0, 'b': 1.0}", "Trainer.num_steps = 4"]
    options = {"init_from": source, "init_step": 2, "init_state": "all"}
    with pytest.raises(ml.UserError, match="parts of the mixture would repeat and skip sequences") as refused:
        train(load(*changed, **options), tmp_path / "run")
    advised = str(refused.value).split("\n\n")[-1].strip()
    assert advised == "Mixture.earlier = [(8, {'a': 1.0, 'b': 3.0})]"
    run, _ = train(load(*changed, advised, **options), tmp_path / "run")
    expected, _ = train(load(*changed, advised), tmp_path / "expected")
    assert_continues(run, expected, 2)


def test_without_a_file_a_branch_has_the_configuration_of_its_step(load, whole, tmp_path):
    source = shutil.copytree(whole.path, tmp_path / "source")
    ml.train(
        load(CONSTANT, "AdamW.learning_rate = 0.01", "Trainer.num_steps = 6"),
        source,
        extend=True,
        device="cpu",
        stream=io.StringIO(),
    )
    rates = {
        step: ml.load(init_from=source, init_step=step).value("optimizer", "AdamW.learning_rate").value
        for step in (2, 4, 6)
    }
    assert rates == {2: "0.005", 4: "0.005", 6: "0.01"}
    run, printed = train(ml.load(init_from=source, init_step=4, init_state="all"), tmp_path / "run")
    assert (run.step, run.metrics()) == (4, [])
    assert "changed after" not in printed
    again = ml.load(init_from=train(load(init_from=source, init_state="average"), tmp_path / "average")[0])
    assert again.value("initial_weights", "FromRun.state").value == "'weights'"
