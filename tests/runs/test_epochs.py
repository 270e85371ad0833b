"""Runs of a number of epochs: recorded, resumed, extended, swept, shown by a dry run and previewed."""

import io
import math

import pytest
from small_run import SMALL

import ml
from ml.building import build_trainer
from ml.cli.verbs import main
from ml.sweeps.file import read_sweep
from ml.sweeps.plan import plan
from ml.sweeps.state import Status, state_of

CONSTANT = ["Trainer.schedule = @ConstantSchedule", "Trainer.validation = None"]
EPOCHS = ["Trainer.num_steps = None", "Trainer.num_epochs = 1.5"]
SHORT = "0 squared is 0.\n" * 60  # 1,020 bytes in one document, of which a tenth is held out
SEQUENCES = (len(SHORT) + 1 - round(0.1 * (len(SHORT) + 1)) - 1) // 64


@pytest.fixture
def bindings(tmp_path):
    (tmp_path / "short.txt").write_text(SHORT)
    file = str(tmp_path / "short.txt")
    return [*SMALL, *CONSTANT, f"TextFiles.paths = {file!r}", *EPOCHS]


def load(bindings, *more):
    return ml.load("recipes/tiny.gin", [*bindings, *more])


def train(config, run_dir, **options):
    return ml.train(config, run_dir, device="cpu", stream=io.StringIO(), **options)


def test_a_run_of_epochs_records_its_length_and_resumes(bindings, tmp_path):
    stopped = train(load(bindings, "Trainer.stop_at_step = 2"), tmp_path / "run")
    assert not stopped.is_finished
    run = train(load(bindings), tmp_path / "run")
    num_steps = math.ceil(1.5 * SEQUENCES / 4)
    assert run.is_finished
    assert run.step == num_steps
    assert f"Trainer.epoch_sequences = {SEQUENCES}" in (tmp_path / "run" / "operative_config.gin").read_text()
    assert [record["epoch"] for record in run.metrics()] == [4 * step / SEQUENCES for step in range(1, num_steps + 1)]
    other = train(load(bindings, f"Trainer.num_steps = {num_steps}", "Trainer.num_epochs = None"), tmp_path / "other")
    assert [record["loss"] for record in other.metrics()] == [record["loss"] for record in run.metrics()]
    (tmp_path / "short.txt").unlink()  # a saved run knows its length without its data
    assert build_trainer(run.config).num_steps == num_steps


def test_more_epochs_extend_a_run_and_another_batch_size_needs_steps(bindings, tmp_path):
    first = train(load(bindings), tmp_path / "run").step
    longer = train(load(bindings, "Trainer.num_epochs = 3"), tmp_path / "run", extend=True)
    assert longer.step == math.ceil(3 * SEQUENCES / 4)
    more = load(bindings, "Trainer.num_epochs = 5", "Trainer.batch_size = 2")
    left = math.ceil((5 * SEQUENCES - longer.step * 4) / 2)
    with pytest.raises(ml.UserError, match=rf"for 5 epochs in all, set .* Trainer.num_steps = {longer.step + left}\n?"):
        train(more, tmp_path / "run", extend=True)
    fewer = load(bindings, "Trainer.num_epochs = 0.5")
    with pytest.raises(ml.UserError, match=f"{longer.step} steps have been taken"):
        train(fewer, tmp_path / "run", extend=True)
    assert first < longer.step


def test_a_sweep_knows_runs_of_epochs_and_extends_them(bindings, tmp_path):
    def planned(epochs):
        listed = [*bindings[:-1], f"Trainer.num_epochs = {epochs}"]
        text = f"gin_file = 'recipes/tiny.gin'\ngin_bindings = {listed!r}\n[grid]\nTrainer.seed = [1]"
        (tmp_path / "sweep.toml").write_text(text)
        (run,) = plan(read_sweep(tmp_path / "sweep.toml"), tmp_path / "runs")
        return run

    new = planned(1.5)
    assert (new.num_steps, state_of(new).status) == (None, Status.NEW)
    train(load(bindings, "Trainer.seed = 1"), new.folder.path)
    assert state_of(planned(1.5)).status is Status.FINISHED
    longer = planned(4)
    assert longer.is_longer
    assert state_of(longer).status is Status.UNFINISHED


def test_the_dry_run_and_the_preview_report_the_data_where_it_is(bindings, tmp_path, capsys):
    listed = [f"--gin_bindings={binding}" for binding in bindings]
    steps = f"{math.ceil(1.5 * SEQUENCES / 4)} steps of 4 sequences"

    def dry_run():
        with pytest.raises(SystemExit) as left:
            main(["train", "--gin_file=recipes/tiny.gin", *listed, "--dry_run", f"--run_dir={tmp_path / 'dry'}"])
        done = capsys.readouterr()
        return left.value.code, done.out, done.err

    code, dry, _ = dry_run()
    assert (code, steps in dry, f"{SEQUENCES} sequences of 64" in dry) == (0, True, True)
    assert main(["data", "recipes/tiny.gin", *listed, "--num_sequences=2"]) == 0
    preview = capsys.readouterr().out
    report = preview[preview.index("data ") :].strip()
    assert report in dry
    assert "sequence 2\n── document 1: 65 tokens, 64 learned\n" in preview
    assert preview.count("⟦") == preview.count("⟧") == 2
    (tmp_path / "short.txt").unlink()
    code, dry, _ = dry_run()
    assert (code, "not opened: no such file or folder" in dry, "unknown without the data" in dry) == (0, True, True)
    (tmp_path / "short.txt").write_text("short")
    code, _, errors = dry_run()
    assert code == 2
    assert "the training text has 6 tokens, but one sequence takes 65" in errors


def test_the_preview_takes_runs_and_colors_terminals(folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["data", str(folder / "run"), "--num_sequences=1"]) == 0
    assert capsys.readouterr().out.count("\x1b[32m") == 1
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["data", str(folder / "run"), "--num_sequences=1"]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert main(["data", str(folder)]) == 2
    assert "no run in" in capsys.readouterr().err
