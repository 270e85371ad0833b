"""Checks before the first run of a sweep: configurations, folders, commands."""

import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import ml
from ml.errors import UserError
from ml.sweeps.file import read_sweep
from ml.sweeps.plan import plan
from ml.sweeps.state import Status, state_of

HEAD = "gin_file = 'recipes/tiny.gin'\n"


@pytest.fixture
def planned(tmp_path):
    def make(text):
        (tmp_path / "sweep.toml").write_text(text)
        return plan(read_sweep(tmp_path / "sweep.toml"), tmp_path / "runs")

    return make


def test_every_member_has_its_configuration_and_nothing_is_written(planned, tmp_path):
    runs = planned(f"{HEAD}gin_bindings = 'Trainer.num_steps = 7'\n[grid]\nTrainer.seed = [1, 2]")
    for seed, run in zip((1, 2), runs, strict=True):
        bindings = ["Trainer.num_steps = 7", f"Trainer.seed = {seed}"]
        assert run.config == ml.load("recipes/tiny.gin", bindings)
        assert run.num_steps == 7
        assert run.folder.path == tmp_path / "runs" / f"seed={seed}"
    assert not (tmp_path / "runs").exists()


def test_a_typo_in_one_member_is_reported_with_its_name_and_place(planned):
    entries = "".join(f"[[list]]\nname = 'm{n}'\ngin_bindings = ['Trainer.seed = {n}']\n" for n in range(1, 7))
    with pytest.raises(UserError) as error:
        planned(
            f"{HEAD}{entries}[[list]]\nname = 'm7'\ngin_bindings = ['Trainer.sed = 7', 'AdamW.learning_rate = -1.0']"
        )
    message = str(error.value)
    assert "sweep.toml: m7: 2 errors in the configuration" in message
    assert "sweep.toml: list[6].gin_bindings[0]: Trainer has no parameter 'sed'; did you mean 'seed'?" in message
    assert "list[6].gin_bindings[1]" in message
    assert "m6" not in message


def test_an_error_of_all_members_is_reported_once(planned):
    with pytest.raises(UserError) as error:
        planned(f"{HEAD}gin_bindings = ['Trainer.sed = 1']\n[grid]\nAdamW.learning_rate = [0.1, 0.2, 0.3]")
    assert str(error.value).count("no parameter 'sed'") == 1
    assert "every member: 1 error" in str(error.value)
    with pytest.raises(UserError, match=r"\[grid\]: .*must be float"):
        planned(f"{HEAD}[grid]\nAdamW.learning_rate = [0.1, '@Linear']")


def test_two_equal_runs_are_refused(planned):
    text = f"{HEAD}[[list]]\nname = 'a'\n[[list]]\nname = 'b'\ngin_bindings = 'Trainer.num_steps = 20'"
    with pytest.raises(UserError, match="a and b are the same run"):
        planned(text)


def test_a_folder_of_another_configuration_is_refused_with_the_difference(planned, tmp_path):
    (run,) = planned(f"{HEAD}[grid]\nTrainer.seed = [1]")
    run.folder.create()
    run.folder.write_config(run.config.text, run.config.operative, run.config.provenance())
    run.folder.append_history({})
    planned(f"{HEAD}[grid]\nTrainer.seed = [1, 2]")
    with pytest.raises(UserError) as error:
        planned(f"{HEAD}gin_bindings = 'Linear.bias = True'\n[grid]\nTrainer.seed = [1, 2]")
    message = str(error.value)
    assert "the sweep has been changed since these were run: name another --output" in message
    assert f"{tmp_path / 'runs' / 'seed=1'} differs in\n  - Linear.bias = False\n" in message
    assert "\n  + Linear.bias = True" in message
    assert "seed=2" not in message


def test_more_steps_and_more_values_extend_a_sweep(planned, tmp_path):
    (tmp_path / "text.txt").write_text("a text of some words. " * 400)
    head = f"{HEAD}gin_bindings = [\"TextFiles.paths = '{tmp_path / 'text.txt'}'\", 'Trainer.validation = None', "
    constant = "'Trainer.schedule = @ConstantSchedule', 'Trainer.num_steps = {}']\n[grid]\nTrainer.seed = {}"
    (run,) = planned(head + constant.format(2, [1]))
    ml.train(run.config, run.folder.path, device="cpu", stream=io.StringIO())
    ours, new = planned(head + constant.format(3, [1, 2]))
    assert (ours.is_longer, new.is_longer) == (True, False)
    assert state_of(ours).status is Status.UNFINISHED
    assert "--extend" in ours.command(read_sweep(tmp_path / "sweep.toml"))
    ml.train(ours.config, ours.folder.path, extend=True, device="cpu", stream=io.StringIO())
    ours, _ = planned(head + constant.format(3, [1, 2]))
    assert (ours.is_longer, state_of(ours).status) == (False, Status.FINISHED)
    cosine = constant.replace("'Trainer.schedule = @ConstantSchedule', ", "")
    with pytest.raises(UserError, match="the sweep has been changed since these were run"):
        planned(head + cosine.format(9, [1]))


def test_commands_survive_a_shell(planned, tmp_path):
    words = "gin_search_path = ['a b', \"c'd\"]\nallow_unused_bindings = true\n"
    (run,) = planned(f'{HEAD}{words}[grid]\n"TextFiles.paths" = ["[\\"it\'s\\", \'$HOME\', \'a\\\\\\\\b\']"]')
    command = run.command(read_sweep(tmp_path / "sweep.toml"))
    assert command[0] == sys.executable
    assert "--gin_bindings=TextFiles.paths = [\"it's\", '$HOME', 'a\\\\b']" in command
    assert {"--gin_search_path=a b", "--gin_search_path=c'd", "--allow_unused_bindings"} < set(command)
    shown = subprocess.run(
        ["sh", "-c", f"printf '%s\\0' {shlex.join(command)}"], capture_output=True, text=True, check=True
    )
    assert shown.stdout.removesuffix("\0").split("\0") == command


def test_init_from_without_a_run_is_an_error(planned):
    with pytest.raises(UserError, match="there is no run in nowhere"):
        planned(f"{HEAD}init_from = 'nowhere'\n[grid]\nTrainer.seed = [1]")


GUIDE = Path(__file__).parents[2] / "docs" / "sweeps.md"
FILES = {
    **{
        f"guide {n}": text for n, text in enumerate(re.findall(r"^```toml\n(.*?)^```$", GUIDE.read_text(), re.M | re.S))
    },
    **{path.name: path.read_text() for path in ml.SHIPPED_CONFIGS.rglob("*.toml")},
}


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_the_files_of_the_guide_and_the_shipped_ones_are_valid(planned, text):
    assert len(planned(text)) > 1
