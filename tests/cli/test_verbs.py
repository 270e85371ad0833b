"""`python -m ml VERB` from the command line."""

import contextlib
import io
import subprocess
import sys

import pytest
import torch
from warm_python import run_python

import ml
from ml.cli import verbs
from ml.training import RunFolder, train


@pytest.fixture
def call(tmp_path):
    def run(*arguments, check=0):
        done = run_python("-m", "ml", *arguments, cwd=tmp_path)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == check, done.stdout + done.stderr
        return done.stdout if check == 0 else done.stderr

    return run


@pytest.fixture
def run_of(tmp_path):
    """Writes the configuration of a run with bindings; returns its folder."""

    def write(name, *bindings):
        config, folder = ml.load("recipes/tiny.gin", bindings), RunFolder(tmp_path / name)
        folder.create()
        folder.write_config(config.text, config.operative, config.provenance())
        return folder.path

    return write


def test_configs_are_listed_shown_and_copied(call, tmp_path):
    assert "recipes/tiny.gin            Tiny model for tests and experiments\n" in call("configs", "list")
    text = (ml.SHIPPED_CONFIGS / "recipes" / "tiny.gin").read_text()
    assert call("configs", "show", "recipes/tiny.gin") == text
    assert call("configs", "copy", "recipes/tiny.gin") == "tiny.gin\n"
    assert (tmp_path / "tiny.gin").read_text() == text
    assert "tiny.gin exists already" in call("configs", "copy", "recipes/tiny.gin", check=2)
    assert "did you mean 'recipes/tiny.gin'?" in call("configs", "show", "recipe/tiny.gin", check=2)


def test_show_lists_parameters_types_defaults_and_documentation(call):
    shown = call("show", "Attention")
    assert "softmax(q kᵀ" in shown
    assert [line.split() for line in shown.splitlines() if " num_kv_heads" in line] == [
        ["num_kv_heads", "int", "|", "None", "None"]
    ]
    assert "decided by the parent" in shown
    assert "must be set" in shown
    assert "did you mean 'Attention'?" in call("show", "Atention", check=2)
    assert "GatedMLP                ml.layers.mlp" in call("show")


def test_explain_shows_sources_of_values_in_a_run(call, run_of):
    folder = run_of("run", "query/Linear.bias = True")
    lines = call("explain", folder, "query/Linear.bias").splitlines()
    assert lines[:2] == ["Linear.bias = True    # flag, --gin_bindings[0]", "    at decoder/block_0_to_1/mixer/query"]
    assert lines[2].startswith("    overrode False    # file, configs/models/llama.gin:")
    assert lines[3:] == ["    overrode True    # default"]
    assert "no parameter of" in call("explain", folder, "nothing", check=2)
    assert "there is no run in nowhere" in call("explain", "nowhere", "bias", check=2)


def test_diff_compares_runs_and_files_by_the_values_in_effect(call, run_of):
    plain, other = run_of("a"), run_of("b", "query/Linear.bias = True", "GatedMLP.intermediate_size = 96")
    lines = call("diff", plain, other).splitlines()
    where, was, now = lines[lines.index("GatedMLP.intermediate_size") :][1:4]
    assert where == "    at decoder/block_0_to_1/mlp"
    assert was.startswith("  - 192    # file, configs/recipes/tiny.gin:")
    assert now == "  + 96    # flag, --gin_bindings[1]"
    assert "    at decoder/block_0_to_1/mixer/query/bias" in lines
    assert call("diff", plain, "recipes/tiny.gin") == "no difference\n"


@pytest.mark.parametrize("arguments", [("--help",), ("configs", "list"), ("explain", "--help"), ("diff", "--help")])
def test_verbs_without_models_do_not_import_torch(arguments):
    program = (
        "import sys\nfrom ml.cli.verbs import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True)


def test_an_unknown_verb_is_refused_with_a_list_of_verbs(call):
    assert "invalid choice: 'shwo'" in call("shwo", check=2)


def test_a_closed_pipe_gives_no_traceback():
    command = f"{sys.executable} -m ml show Attention | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr


@pytest.fixture
def trained(tmp_path):
    """The folder of a run with a checkpoint."""
    (tmp_path / "text.txt").write_text("one two three four five six seven. " * 40)
    small = ["Trainer.num_steps = 2", "CosineSchedule.warmup_steps = 1", "Validation.num_tokens = 32"]
    bindings = [*small, "TextFiles.paths = ['text.txt']", "TextData.validation_fraction = 0.1"]
    config, folder = ml.load("recipes/tiny.gin", bindings), RunFolder(tmp_path / "trained")
    folder.create()
    folder.write_config(config.text, config.operative, config.provenance())
    with contextlib.chdir(tmp_path):
        trainer = ml.api.build_trainer(config)
        train(trainer, trainer.open_data(), folder, torch.device("cpu"), stream=io.StringIO())
    return folder.path


def test_generate_continues_prompts(call, trained, tmp_path):
    def generate(*arguments, seed=3):
        return call("generate", trained, "--num_tokens", "12", "--seed", seed, *arguments).removesuffix("\n")

    alone = generate("--prompt", "one")
    assert alone.startswith("one")
    assert generate("--prompt", "one") == alone
    assert generate("--prompt", "one", seed=4) != alone
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\nthree\n")
    several = generate("--prompt_file", prompts)
    assert several.startswith(f"[0] {alone}\n\n[1] three")
    greedy = generate("--prompt", "one", "--temperature", "0").removeprefix("one")
    assert len(greedy) == 12
    stopped = generate("--prompt", "one", "--temperature", "0", "--stop", greedy[3:])
    assert stopped == "one" + greedy[: greedy.index(greedy[3:])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give a text to continue"),
        (("--prompt", "x", "--num_samples", "0"), "--num_samples cannot be 0"),
        (("--prompt", "x", "--stop", ""), "--stop cannot be"),
        (("--prompt", "x", "--top_p", "2"), "--top_p cannot be 2.0"),
        (("--prompt", "x", "--temperature", "-1"), "--temperature cannot be -1.0"),
        (("--prompt_file", "nowhere.txt"), "nowhere.txt cannot be read"),
        (("--prompt", "x", "--step", "77"), "there is no checkpoint of step 77"),
    ],
)
def test_an_impossible_generation_is_an_error(call, trained, arguments, message):
    assert message in call("generate", trained, *arguments, check=2)


def test_ctrl_c_ends_a_verb_without_a_traceback(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("ml.cli.show.run", interrupted)
    assert verbs.main(["show"]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"  # end of the output so far
