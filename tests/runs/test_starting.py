"""Initial weights and teachers are part of a run: recorded, compared, shown and found again."""

import io
import json
import re
import shutil

import pytest
import torch
from small_run import SMALL
from test_launch import measured, weights

import ml
from ml.training import loop

STILL = ["AdamW.learning_rate = 1e-30", "Trainer.num_steps = 1", "CosineSchedule.warmup_steps = 0"]
FEW = ["Trainer.num_steps = 2", "Trainer.weight_average = None", "Checkpoints.every = None"]


@pytest.fixture
def base(folder, tmp_path):
    """A copy of the run of four steps, with checkpoints of steps 2 and 4, which a test may change."""
    return ml.open_run(shutil.copytree(folder / "run", tmp_path / "base"))


@pytest.fixture
def load(folder):
    """Loads a small configuration with further bindings."""

    def load(*bindings, **options):
        text = f"TextFiles.paths = {str(folder / 'text.txt')!r}"
        return ml.load("recipes/tiny.gin", [*SMALL, *FEW, text, *bindings], **options)

    return load


def train(config, run_dir):
    stream = io.StringIO()
    run = ml.train(config, run_dir, device="cpu", stream=stream)
    return run, stream.getvalue()


def dies_before_a_checkpoint(config, run_dir, monkeypatch):
    """Trains a step and dies, as by SIGKILL."""

    def die(*arguments):
        take_step(*arguments)
        raise KeyboardInterrupt

    take_step = loop.train_step
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", die)
        with pytest.raises(KeyboardInterrupt):
            ml.train(config, run_dir, device="cpu", stream=io.StringIO())
    assert not list((run_dir / "checkpoints").iterdir())


def pins(run):
    return [run.config.value("initial_weights", f"FromRun.{name}").value for name in ("step", "sha256")]


@pytest.mark.parametrize("as_path", [True, False])
@pytest.mark.parametrize(("step", "state"), [(None, None), (2, None), (4, "average")])
def test_the_first_step_starts_from_those_weights(load, base, tmp_path, as_path, step, state):
    config = load(*STILL, init_from=str(base.path) if as_path else base, init_step=step, init_state=state)
    run, printed = train(config, tmp_path / "next")
    expected = dict(base.build(step, average=state == "average").named_parameters())
    started = weights(run)
    assert all(torch.equal(started[name], tensor) for name, tensor in expected.items())
    assert pins(run)[0] == str(step or 4)
    assert f"of step {step or 4} (" in printed


def test_a_killed_run_restarts_from_the_same_weights_and_a_finished_one_repeats(load, base, tmp_path, monkeypatch):
    undisturbed, _ = train(load(init_from=base, init_step=2), tmp_path / "undisturbed")
    killed = tmp_path / "killed"
    dies_before_a_checkpoint(load(init_from=base, init_step=2), killed, monkeypatch)
    resumed, _ = train(ml.load(killed / "operative_config.gin"), killed)
    repeated, _ = train(ml.load(undisturbed.path / "operative_config.gin"), tmp_path / "repeated")
    scratch, _ = train(load(), tmp_path / "scratch")
    for run in (resumed, repeated):
        assert measured(run) == measured(undisturbed)
        assert run.config == undisturbed.config
    assert measured(scratch)[0]["loss"] > measured(undisturbed)[0]["loss"]


def test_explain_and_diff_show_what_a_run_started_from(load, base, tmp_path, juniper):
    scratch, _ = train(load(), tmp_path / "scratch")
    tuned, _ = train(load(init_from=base), tmp_path / "tuned")
    shown = juniper("diff", scratch.path, tuned.path)
    assert "Trainer.initial_weights\n  - None" in shown
    assert "+ @FromRun    # flag, --init_from" in shown
    explained = juniper("explain", tuned.path, "FromRun.*")
    assert re.search(r"FromRun.sha256 = '[0-9a-f]{64}'", explained)
    assert "FromRun.step = 4 " in explained
    assert f"FromRun.path = '{base.path}'    # flag, --init_from" in explained


def test_the_operative_config_is_a_fixpoint_and_the_place_is_not_in_the_fingerprint(load, base, tmp_path):
    tuned, _ = train(load(init_from=base), tmp_path / "tuned")
    text = (tuned.path / "operative_config.gin").read_text()
    assert ml.load(tuned.path / "operative_config.gin").operative == text
    moved = shutil.copytree(base.path, tmp_path / "moved")
    other, _ = train(load(init_from=moved), tmp_path / "other")
    assert other.config.fingerprint == tuned.config.fingerprint
    earlier, _ = train(load(init_from=base, init_step=2), tmp_path / "earlier")
    assert earlier.config.fingerprint != tuned.config.fingerprint


def test_a_file_that_names_the_folder_alone_is_completed_with_step_and_hash(load, base, tmp_path):
    by_file, _ = train(load("Trainer.initial_weights = @FromRun", f"FromRun.path = {str(base.path)!r}"), tmp_path / "a")
    by_flag, _ = train(load(init_from=base), tmp_path / "b")
    assert pins(by_file) == pins(by_flag)
    assert measured(by_file) == measured(by_flag)


@pytest.mark.parametrize("as_file", [True, False])
def test_the_folder_of_a_single_checkpoint_is_that_checkpoint(load, base, tmp_path, as_file):
    older = base.path / "checkpoints/step_2"
    given = [["Trainer.initial_weights = @FromRun", f"FromRun.path = {str(older)!r}"], []][not as_file]
    run, _ = train(load(*given, **({} if as_file else {"init_from": older})), tmp_path / "run")
    assert pins(run)[0] == "2"


@pytest.mark.parametrize("place", ["FromRun", "initial_weights/FromRun"])
def test_one_more_binding_on_a_saved_run_names_another_checkpoint(load, base, tmp_path, place):
    run, _ = train(load(f"{place}.step = 4", init_from=base), tmp_path / "run")
    saved = run.path / "operative_config.gin"
    with pytest.raises(ml.UserError, match=r"step 2 and the SHA-256 \w{12} do not go together: that is step 4"):
        train(ml.load(saved, [f"{place}.step = 2"]), tmp_path / "wrong")
    again, _ = train(ml.load(saved, [f"{place}.step = 2", f"{place}.sha256 = None"]), tmp_path / "again")
    assert pins(again)[0] == "2"


@pytest.mark.parametrize("killed", [True, False])
def test_the_same_command_resumes_although_the_source_has_trained_on(load, base, tmp_path, monkeypatch, killed):
    undisturbed, _ = train(load(init_from=base), tmp_path / "undisturbed")
    folder = tmp_path / "run"
    if killed:
        dies_before_a_checkpoint(load(init_from=base), folder, monkeypatch)
    else:
        train(load(init_from=base), folder)
    newer = shutil.copytree(base.path / "checkpoints/step_2", base.path / "checkpoints/step_9")
    _rewrite_step(newer, 9)
    resumed, _ = train(load(init_from=base), folder)
    assert measured(resumed) == measured(undisturbed)
    assert train(load(init_from=base), tmp_path / "new")[1].count("step 9") == 1


def _rewrite_step(checkpoint, step):
    from ml.training.checkpoints.atomic_folders import publish, sealed, temporary

    hidden = temporary(checkpoint)
    checkpoint.rename(hidden)
    counts = json.loads((hidden / "training.json").read_text())
    (hidden / "training.json").write_text(json.dumps(counts | {"step": step}))
    publish(checkpoint, sealed([file for file in hidden.iterdir() if file.name not in ("manifest.json", "COMMITTED")]))


def test_another_source_and_a_forgotten_one_are_refused_with_the_difference(load, base, tmp_path):
    run, _ = train(load(init_from=base), tmp_path / "run")
    other, _ = train(load("Trainer.seed = 3"), tmp_path / "other")
    with pytest.raises(ml.UserError, match=r"(?s)another configuration.*- FromRun.sha256 = '\w+'.*\+ FromRun.sha256"):
        train(load(init_from=other), run.path)
    of_start = r"(?s)- FromRun.step = 4.*\+ FromRun.step = 2.*FromRun.sha256.*Name what it started from"
    with pytest.raises(ml.UserError, match=of_start):
        train(load(init_from=base, init_step=2), run.path)
    with pytest.raises(ml.UserError, match=r"(?s)- Trainer.initial_weights = @FromRun.*\+ .*weights = None"):
        train(load(), run.path)
    with pytest.raises(ml.UserError, match=r"(?s)- Trainer.initial_weights = None.*\+ FromRun.step = 4"):
        train(load("Trainer.seed = 3", init_from=base), other.path)


def test_moved_weights_are_found_by_their_hash_and_lost_ones_are_a_refusal(load, base, tmp_path, monkeypatch):
    undisturbed, _ = train(load(init_from=base, init_step=2), tmp_path / "undisturbed")
    folder = tmp_path / "run"
    dies_before_a_checkpoint(load(init_from=base, init_step=2), folder, monkeypatch)
    moved = base.path.rename(tmp_path / "elsewhere")
    with pytest.raises(ml.UserError, match=r"there is no run in .*base. If the run was moved, name its new folder"):
        train(ml.load(folder / "operative_config.gin"), folder)
    (moved / "checkpoints/step_2").rename(moved / "checkpoints/renamed")
    resumed, _ = train(ml.load(folder / "operative_config.gin", {"FromRun.path": str(moved)}), folder)
    assert measured(resumed) == measured(undisturbed)
    shutil.rmtree(resumed.path / "checkpoints")
    again, _ = train(load(init_from=moved), folder)  # the same flag at the new place
    assert measured(again) == measured(undisturbed)
    shutil.rmtree(resumed.path / "checkpoints")
    shutil.rmtree(moved / "checkpoints/renamed")
    with pytest.raises(ml.UserError, match=r"the weights of step 2 with the SHA-256 \w{12} are not in .*elsewhere"):
        train(ml.load(folder / "operative_config.gin", {"FromRun.path": str(moved)}), folder)


@pytest.mark.parametrize("has_file", [True, False])
def test_after_its_first_checkpoint_a_run_does_not_need_its_source(load, base, folder, tmp_path, has_file):
    """Neither by its operative config nor by the original command."""
    own = ["Trainer.num_steps = 5"] if not has_file else []

    def original(**options):
        options |= {"init_from": str(base.path), "init_state": "average"}
        return load(**options) if has_file else ml.load(bindings=own, **options)

    config = original()
    run, _ = train(config, tmp_path / "run")
    config_before, before = run.config, measured(run)
    shutil.rmtree(base.path)
    again = original(run_dir=run.path)
    imported = [one for one in again.records() if one.source == "imported"]
    assert {one.location for one in imported} <= {f"{base.path}/operative_config.gin", None}
    for known in (run.config, again):
        resumed, printed = train(known, run.path)
        assert resumed.is_finished
        assert (resumed.config, measured(resumed)) == (config_before, before)
        assert "resuming from" in printed
    for other in (None, folder / "run"):  # no run, and one that started from nothing
        with pytest.raises(ml.UserError, match=f"there is no run in {base.path}"):
            original(run_dir=other)
    shutil.rmtree(run.path / "checkpoints")
    lost = rf"the weights of step 4 with the SHA-256 {pins(run)[1][1:13]} are not in {base.path}: there is no run in"
    with pytest.raises(ml.UserError, match=lost):
        train(original(run_dir=run.path), run.path)


def test_a_damaged_source_is_refused_before_anything_is_written(load, base, tmp_path):
    with (base.path / "checkpoints/step_4/__0_0.distcp").open("r+b") as file:
        file.write(b"x")
    with pytest.raises(ml.UserError, match=r"__0_0.distcp has changed since it was written"):
        train(load(init_from=base, init_step=4), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_a_file_the_whole_configuration_comes_from_the_run(base, tmp_path):
    config = ml.load(bindings=STILL, init_from=base)
    assert config.value("", "Trainer.batch_size") == ml.load(base.path / "operative_config.gin").value(
        "", "Trainer.batch_size"
    )
    assert config.name == "base"


@pytest.mark.parametrize("option", [{"init_step": 2}, {"init_state": "average"}, {"init_may_differ": ["head.*"]}])
def test_what_goes_with_a_source_needs_one(load, option):
    with pytest.raises(ml.UserError, match=rf"^{next(iter(option))} goes with init_from$"):
        load(**option)


def test_an_average_starts_from_the_weights_that_were_loaded(load, base, tmp_path):
    late = ["Trainer.weight_average = @ExponentialMovingAverage", "ExponentialMovingAverage.start = 9"]
    run, _ = train(load(*STILL, *late, init_from=base), tmp_path / "run")
    average = dict(run.build(average=True).named_parameters())
    assert all(torch.equal(average[name], tensor) for name, tensor in weights(base).items())


def test_a_dry_run_shows_what_it_would_start_from(base, folder, tmp_path, juniper, capsys):
    flags = [f"--gin_bindings=TextFiles.paths = {str(folder / 'text.txt')!r}", f"--init_from={base.path}"]
    flags += ["--init_step=2", "--dry_run", f"--run_dir={tmp_path / 'dry'}"]
    with pytest.raises(SystemExit):
        juniper("train", *flags)
    assert f"starting from the weights of step 2 ({base.path}/checkpoints/step_2, SHA-256 " in capsys.readouterr().out
    assert "FromRun.step = 2\n" in (tmp_path / "dry/operative_config.gin").read_text()


def test_the_teacher_is_recorded_and_found_again(load, base, tmp_path):
    taught = ["Trainer.distillation = @Distillation", f"Distillation.teacher = {str(base.path)!r}"]
    first, _ = train(load(*taught), tmp_path / "first")
    step, sha256 = (first.config.value("distillation", f"Distillation.{name}").value for name in ("step", "sha256"))
    assert step == "4"
    assert len(sha256) == 66
    _rewrite_step(shutil.copytree(base.path / "checkpoints/step_2", base.path / "checkpoints/step_9"), 9)
    again, _ = train(ml.load(first.path / "operative_config.gin"), tmp_path / "again")
    assert measured(again) == measured(first)
    resumed, _ = train(load(*taught), first.path)
    assert resumed.config == first.config
    shutil.rmtree(base.path / "checkpoints/step_4")
    with pytest.raises(ml.UserError, match=r"the weights of step 4 with the SHA-256 \w{12} are not in"):
        train(ml.load(first.path / "operative_config.gin"), tmp_path / "third")
