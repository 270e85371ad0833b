"""Runs with custom modules: the saved code, and that it is never executed without permission."""

import shutil
import subprocess
from pathlib import Path

import pytest
from warm_python import run_python

import ml
from ml.config import ConfigError

ROOT = Path(__file__).parents[2]
FAST = "Trainer.num_steps = 2\nCosineSchedule.warmup_steps = 1\nTrainer.validation = None"
LAYERS = """
import my_sizes
from torch import nn
from ml.config import child, configurable
from ml.layers import Linear

@configurable
class MyMLP(nn.Module):
    def __init__(self, hidden_size: int, *, width: int = my_sizes.WIDTH):
        super().__init__()
        self.up = child("up", Linear, hidden_size, width)
        self.down = child("down", Linear, width, hidden_size)

    def forward(self, x, *_):
        return self.down(self.up(x))
"""
GIN = "import my_layers\ninclude 'recipes/tiny.gin'\nDecoderBlock.mlp = @MyMLP\n"
CANARY = "open({!r}, 'w').close()\n"


def python(*arguments, cwd: Path) -> subprocess.CompletedProcess:
    done = run_python(*arguments, cwd=cwd)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns a folder with a run in `run` and its modules in `exp`, in the folder of the gin file."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "text.txt").write_text("".join(f"{n} times {n} is {n * n}.\n" for n in range(400)))
    (folder / "exp").mkdir()
    (folder / "exp" / "my_layers.py").write_text(LAYERS)
    (folder / "exp" / "my_sizes.py").write_text("WIDTH = 48\n")
    (folder / "exp" / "own.gin").write_text(GIN)
    bindings = [f"--gin_bindings={FAST}", f"--gin_bindings=TextFiles.paths = {str(folder / 'text.txt')!r}"]
    done = python(ROOT / "train.py", "--gin_file=exp/own.gin", *bindings, "--run_dir=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """Returns a copy of the run in a folder without its modules."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


def test_the_run_folder_has_the_imported_code(trained):
    assert (trained / "run/code/my_layers.py").read_text() == LAYERS
    assert (trained / "run/code/my_sizes.py").read_text() == "WIDTH = 48\n"


def test_a_run_resumes_with_unchanged_modules(trained, run, tmp_path):
    arguments = (ROOT / "train.py", f"--gin_file={run}/operative_config.gin", f"--run_dir={run}")
    assert python(*arguments, f"--gin_search_path={trained}/exp", cwd=tmp_path).returncode == 0


COMMANDS = {
    "train": (ROOT / "train.py", "--dry_run", "--gin_file=run/operative_config.gin", "--run_dir=other"),
    "checkpoint": (
        ROOT / "train.py",
        "--dry_run",
        "--gin_file=run/checkpoints/step_2/operative_config.gin",
        "--run_dir=other",
    ),
    "generate": ("-m", "ml", "generate", "run", "--prompt=1", "--num_tokens=2"),
    "evaluate": ("-m", "ml", "evaluate", "run", "--data", "text.txt"),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_the_saved_copy_of_a_missing_module_is_used_only_if_trusted(trained, run, tmp_path, command):
    shutil.copy(trained / "text.txt", tmp_path)
    refused = python(*command, cwd=tmp_path)
    assert refused.returncode == 2
    assert "there is no module 'my_layers'" in refused.stderr
    assert "--trust_run_code" in refused.stderr
    assert python(*command, "--trust_run_code", cwd=tmp_path).returncode == 0


def test_a_changed_module_is_an_error_and_is_not_used(trained, run, tmp_path, monkeypatch):
    (tmp_path / "my_layers.py").write_text(LAYERS)
    (tmp_path / "my_sizes.py").write_text("WIDTH = 50\n")
    with pytest.raises(ConfigError) as caught:
        ml.open_run(run).config  # noqa: B018
    (problem,) = caught.value.problems
    assert problem.message.startswith("my_sizes.py differs from the file that this run was created with")
    assert "trust_code=True" in problem.message
    trusted = ml.open_run(run, trust_code=True)
    assert trusted.build().decoder.blocks[0].mlp.up.out_features == 48
    (tmp_path / "my_sizes.py").write_text("WIDTH = 48\n")
    assert ml.open_run(run).config.fingerprint == trusted.config.fingerprint


def test_a_changed_copy_is_an_error(run):
    (run / "code" / "my_sizes.py").write_text("WIDTH = 50\n")
    with pytest.raises(ConfigError, match="in the run's copy of the code has changed since the run was created"):
        ml.open_run(run, trust_code=True).config  # noqa: B018


PLACES = ["my_layers.py", "code/my_layers.py", "my_layers/__init__.py", "checkpoints/step_2/my_layers.py", "msvcrt.py"]
IMPORTS = ["my_layers", "run.my_layers", "run.code.my_layers", "msvcrt"]


@pytest.mark.parametrize("statement", IMPORTS)
@pytest.mark.parametrize("inside", [True, False])
def test_opening_a_run_executes_no_code_from_its_folder(run, tmp_path, monkeypatch, statement, inside):
    canary = tmp_path / "executed"
    for place in PLACES:
        (run / place).parent.mkdir(parents=True, exist_ok=True)
        (run / place).write_text(CANARY.format(str(canary)))
    for file in run.rglob("operative_config.gin"):
        file.write_text(file.read_text().replace("import my_layers", f"import {statement}"))
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(run if inside else tmp_path)
            patch.syspath_prepend(str(run if inside else tmp_path))
            with pytest.raises(ConfigError):
                ml.load(file)
    with pytest.raises(ConfigError):
        ml.open_run(run).config  # noqa: B018
    assert not canary.exists()
