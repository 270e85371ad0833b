"""The command `juniper`, through the function that its entry point calls."""

import subprocess
import sys
from pathlib import Path

import pytest

import ml
from ml.cli import verbs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def juniper(capsys, monkeypatch, tmp_path):
    """Calls the command in an empty folder; returns its exit code and what it printed to both streams."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["juniper", *arguments])
        try:
            code = verbs.main()
        except SystemExit as ended:
            code = ended.code or 0
        return code, *capsys.readouterr()

    return call


def test_help_lists_every_verb_with_its_summary(juniper):
    code, printed, _ = juniper("--help")
    assert code == 0
    assert printed.startswith("usage: juniper ")
    listed = {line.split()[0] for line in printed.splitlines() if line.startswith("    ") and line.strip()}
    assert {"train", *verbs.VERBS} <= listed
    assert len(verbs.VERBS) >= 11


def test_the_version_is_that_of_the_package(juniper):
    assert juniper("--version")[:2] == (0, f"juniper {ml.__version__}\n")


@pytest.mark.parametrize("verb", ["train", *verbs.VERBS])
def test_every_verb_has_a_help_that_is_no_failure(juniper, verb):
    code, printed, _ = juniper(verb, "--help")
    assert code == 0
    assert f"juniper {verb}" in printed


def test_the_help_of_train_lists_the_flags(juniper):
    printed = juniper("train", "--help")[1]
    for flag in ("gin_file", "gin_bindings", "gin_search_path", "run_dir", "dry_run", "explain", "init_from"):
        assert f"--{flag}" in printed or f"--[no]{flag}" in printed


def test_train_takes_the_flags_of_train_py_and_forgets_them(juniper, tmp_path):
    arguments = ("train", "--gin_file=recipes/tiny.gin", "--dry_run", "--run_dir=dry")
    code, printed, _ = juniper(*arguments, "--gin.Linear.bias=True", "--explain=query/Linear.bias")
    assert code == 0
    assert "Linear.bias = True    # flag, --gin_bindings[0]" in printed
    (tmp_path / "dry").rename(tmp_path / "first")
    code, printed, _ = juniper(*arguments)
    assert code == 0
    assert "# flag" not in printed
    assert "\nLinear.bias = False" in (tmp_path / "dry" / "operative_config.gin").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train",), "no configuration: name one with --gin_file=base.gin. There are base.gin"),
        (("train", "base.gin"), "unexpected argument 'base.gin'; did you mean --gin_file=base.gin?"),
        (("train", "--gin_file=base.gin", "--explain=x"), "--explain goes with --dry_run"),
        (("train", "--gin_fiel=x"), "Unknown command line flag 'gin_fiel'"),
        ((), "the following arguments are required: VERB"),
        (("trian",), "invalid choice: 'trian'"),
    ],
)
def test_a_mistake_is_a_message_and_exit_code_2(juniper, arguments, message):
    code, _, errors = juniper(*arguments)
    assert code == 2
    assert message in errors
    assert "Traceback" not in errors


def test_python_m_ml_train_is_the_same_command(tmp_path):
    command = [sys.executable, "-m", "ml", "train", "--gin_file=recipes/tiny.gin", "--dry_run", "--run_dir=dry"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "nothing was trained" in done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["train"], ["--version"]])
def test_the_help_imports_no_torch(arguments):
    program = (
        "import sys\nfrom ml.cli.verbs import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
