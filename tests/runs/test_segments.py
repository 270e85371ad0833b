"""Runs that are extended: more steps, or other values from a step on, against runs that had them from the start."""

import io
import re
import shutil

import pytest
import torch
from small_run import SMALL

import ml
from ml.building import build_trainer
from ml.cli.verbs import main
from ml.run_files import segment_folders
from ml.training import loop
from ml.training.history import read_starts
from ml.training.metrics.throughput import MACHINE_METRICS

CONSTANT = "Trainer.schedule = @ConstantSchedule"
WATCHED = ["Trainer.validation = None", "Checkpoints.keep = None"]


@pytest.fixture
def load(folder):
    def load(*bindings):
        return ml.load(
            "recipes/tiny.gin", [*SMALL, *WATCHED, f"TextFiles.paths = {str(folder / 'text.txt')!r}", *bindings]
        )

    return load


def train(config, run_dir, **options):
    stream = io.StringIO()
    return ml.train(config, run_dir, device="cpu", stream=stream, **options), stream.getvalue()


def measured(run):
    return [{name: x for name, x in record.items() if name not in MACHINE_METRICS} for record in run.metrics()]


def weights(run):
    return {**dict(run.build().named_parameters()), **dict(run.build(average=True).named_buffers())}


def assert_same(ours, theirs):
    assert measured(ours) == measured(theirs)
    expected = weights(theirs)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(ours).items())


def test_a_run_extended_with_a_constant_schedule_is_bitwise_the_longer_run(load, tmp_path):
    longer, _ = train(load(CONSTANT, "Trainer.num_steps = 8"), tmp_path / "longer")
    train(load(CONSTANT), tmp_path / "run")
    with pytest.raises(ml.UserError, match="add extend to change it after step 4, or init_from=") as refused:
        train(load(CONSTANT, "Trainer.num_steps = 8"), tmp_path / "run")
    assert "- Trainer.num_steps = 4\n  + Trainer.num_steps = 8" in str(refused.value)
    run, printed = train(load(CONSTANT, "Trainer.num_steps = 8"), tmp_path / "run", extend=True)
    assert "changed after step 4 (- before, + from now on):\n  - Trainer.num_steps = 4" in printed
    assert_same(run, longer)
    assert list(segment_folders(run.path)) == [0, 4]
    assert [(start["segment"], start["first_step"]) for start in read_starts(run.path / "history.jsonl")] == [
        (0, 1), (4, 5),
    ]  # fmt: skip
    again, _ = train(load(CONSTANT, "Trainer.num_steps = 8"), tmp_path / "run")
    assert again.config == longer.config


def test_diff_and_explain_know_segments(load, tmp_path, capsys):
    config = load(CONSTANT)
    for step, run in ((4, "run"), (4, "other")):
        train(config, tmp_path / run)
        assert ml.open_run(tmp_path / run).step == step
    train(load(CONSTANT, "Trainer.num_steps = 6", "Trainer.batch_size = 2"), tmp_path / "run", extend=True)
    capsys.readouterr()

    def printed(*arguments):
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    between = printed("diff", tmp_path / "run")
    assert between.startswith("after step 4:\n    Trainer.num_steps\n      - 4    # flag, --gin_bindings[0]\n      + 6")
    assert "Trainer.batch_size\n      - 4" in between
    runs = printed("diff", tmp_path / "other", tmp_path / "run")
    assert "Trainer.batch_size\n  - 4" in runs
    assert "run has earlier segments (after step 0), not compared here" in runs
    assert "other has one segment: it was never extended" in printed("diff", tmp_path / "other")
    explained = printed("explain", tmp_path / "run", "Trainer.batch_size")
    assert re.findall(r"after step (\d):\n    Trainer.batch_size = (\d)", explained) == [("0", "4"), ("4", "2")]
    assert printed("explain", tmp_path / "run", "Trainer.seed").count("Trainer.seed") == 1
    assert "Trainer.num_steps" in printed("explain", tmp_path / "run" / "segments" / "step_0", "Trainer.num_steps")


def test_another_learning_rate_from_a_step_on_equals_the_schedule_that_has_it(load, tmp_path):
    phases = [
        "Trainer.num_steps = 8",
        "Trainer.schedule = @PhasedSchedule",
        "PhasedSchedule.phases = {'first': @WarmupPhase, 'then': @WarmupPhase}",
        "first/WarmupPhase.start = 1.0",
        "first/WarmupPhase.num_steps = 4",
        "then/WarmupPhase.start = 0.5",
        "then/WarmupPhase.end = 0.5",
    ]
    rate = 0.003
    expected, _ = train(load(*phases, f"AdamW.learning_rate = {rate}"), tmp_path / "expected")
    train(load(CONSTANT, f"AdamW.learning_rate = {rate}"), tmp_path / "run")
    changed = load(CONSTANT, f"AdamW.learning_rate = {rate / 2}", "Trainer.num_steps = 8")
    run, printed = train(changed, tmp_path / "run", extend=True)
    assert f"learning rate at step 4: {rate:g}; step 5: {rate / 2:g}, step 6: {rate / 2:g}" in printed
    assert_same(run, expected)


def test_another_batch_size_continues_at_the_next_sequence(load, tmp_path, monkeypatch):
    taken = []
    original = loop.TrainLoop._load

    def watched(self, step, skipped):
        batches = original(self, step, skipped)
        taken.append((step, [row.tolist() for batch in batches for row in batch.tokens]))
        return batches

    monkeypatch.setattr(loop.TrainLoop, "_load", watched)
    train(load(CONSTANT), tmp_path / "run")
    for batch_size, num_steps in ((6, 6), (2, 9)):
        config = load(CONSTANT, f"Trainer.batch_size = {batch_size}", f"Trainer.num_steps = {num_steps}")
        train(config, tmp_path / "run", extend=True)
    sizes = [4] * 4 + [6] * 2 + [2] * 3
    assert [(step, len(rows)) for step, rows in sorted(taken)] == list(enumerate(sizes, 1))
    trainer = build_trainer(load(CONSTANT, "Trainer.batch_size = 1"))
    dataset = trainer.open_data().training
    expected = [dataset.batch(number, 1).tokens[0].tolist() for number in range(sum(sizes))]
    assert [row for _, rows in sorted(taken) for row in rows] == expected


def test_the_parts_of_a_mixture_with_other_weights_continue(load, folder, tmp_path):
    (tmp_path / "other.txt").write_text("nine eight seven six. " * 300)
    mixture = [
        CONSTANT,
        "Trainer.data = @Mixture",
        "Mixture.datasets = {'a': @TextData, 'b': @TextData}",
        f"b/TextFiles.paths = {str(tmp_path / 'other.txt')!r}",
    ]
    train(load(*mixture, "Mixture.weights = {'a': 1.0, 'b': 3.0}"), tmp_path / "run")
    changed = [*mixture, "Mixture.weights = {'a': 3.0, 'b': 1.0}", "Trainer.num_steps = 6"]
    with pytest.raises(ml.UserError, match="parts of the mixture would repeat and skip sequences") as refused:
        train(load(*changed), tmp_path / "run", extend=True)
    advised = str(refused.value).split("\n\n")[-1].strip()
    assert advised == "Mixture.earlier = [(16, {'a': 1.0, 'b': 3.0})]"
    run, _ = train(load(*changed, advised), tmp_path / "run", extend=True)
    whole, _ = train(load(*changed, advised), tmp_path / "whole")
    assert run.config == whole.config
    assert_same(run, whole)


@pytest.mark.parametrize("decay", ["Trainer.schedule = @WarmupStableDecay\nWarmupStableDecay.decay_fraction = 0.5"])
def test_a_decay_from_a_step_on_equals_the_run_whose_schedule_had_it(load, tmp_path, decay):
    expected, _ = train(load(decay, "Trainer.num_steps = 8"), tmp_path / "expected")
    train(load(CONSTANT), tmp_path / "run")
    assert_same(train(load(decay, "Trainer.num_steps = 8"), tmp_path / "run", extend=True)[0], expected)


def test_a_cosine_whose_end_moves_is_refused_with_phases_that_would_do(load, tmp_path):
    train(load(), tmp_path / "run")
    with pytest.raises(ml.UserError, match="the schedule is another one from step 2 on: learning rate at") as refused:
        train(load("Trainer.num_steps = 8"), tmp_path / "run", extend=True)
    _, hold, _, rewarm = str(refused.value).split("\n\n")
    held, _ = train(load("Trainer.num_steps = 8", hold), tmp_path / "run", extend=True)
    rates = [record["learning_rate"] for record in held.metrics()]
    assert rates[4:] == [rates[3]] * 4
    train(load(), tmp_path / "other")
    warmed, _ = train(load("Trainer.num_steps = 8", rewarm), tmp_path / "other", extend=True)
    rates = [record["learning_rate"] for record in warmed.metrics()]
    assert max(rates[4:]) == rates[4] == pytest.approx(max(rates))
    assert rates[7] == pytest.approx(0.1 * rates[4])


@pytest.mark.parametrize("binding", ["Mesh.data_replicate = -1\nMesh.data_shard = 1", "Trainer.micro_batch_size = 2"])
def test_draws_may_change_from_a_step_on(run, tmp_path, binding):
    """A run with dropout changes by options that are neutral without dropout; that is a change and no obstacle."""
    path = shutil.copytree(run.path, tmp_path / "run")
    config = ml.load(path / "operative_config.gin", [binding])
    with pytest.raises(ml.UserError, match="add extend to change it after step 4"):
        train(config, path)
    _, printed = train(config, path, extend=True)
    assert all(f"+ {line}" in printed for line in binding.splitlines())


@pytest.mark.parametrize("binding", ["LanguageModel.hidden_size = 48", "Trainer.seed = 3", "Trainer.optimizer = @Lion"])
def test_what_cannot_change_in_a_run_is_refused_by_name(load, run, tmp_path, binding):
    with pytest.raises(ml.UserError, match=f"{binding.split(' = ')[0]}.* cannot change in a run. Start another") as no:
        ml.train(ml.load(run.path / "operative_config.gin", [binding]), run.path, extend=True, device="cpu")
    assert f"init_from={run.path} init_step=4" in str(no.value)


def test_extend_needs_a_run(load, tmp_path):
    with pytest.raises(ml.UserError, match="extend goes with a run_dir that holds a run; there is none in"):
        train(load(), tmp_path / "run", extend=True)
    with pytest.raises(ml.UserError, match="extend goes with run_dir"):
        train(load(), None, extend=True)
    assert not list(tmp_path.iterdir())
