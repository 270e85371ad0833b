"""train.py from the command line: flags, messages, exit codes, files."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from warm_python import run_python

from ml.training.metrics.throughput import MACHINE_METRICS

ROOT = Path(__file__).parents[2]
FAST = "Trainer.num_steps = 4\nCosineSchedule.warmup_steps = 1\nTrainer.log_every = 1"


@pytest.fixture
def work(tmp_path):
    """Creates a working folder with a text to train on."""
    (tmp_path / "text.txt").write_text("".join(f"{n} times {n} is {n * n}.\n" for n in range(400)))
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("A text of a few words. " * 20)
    return tmp_path


@pytest.fixture
def train(work):
    """Runs train.py there; returns the finished process."""

    def run(*arguments, check=None, is_warm=True):
        command = [sys.executable, str(ROOT / "train.py"), *arguments]
        if is_warm:
            done = run_python(*command[1:], cwd=work)
        else:
            done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=300, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        if check is not None:
            assert done.returncode == check, done.stdout + done.stderr
        return done

    return run


TINY = ("--gin_file=recipes/tiny.gin", f"--gin_bindings={FAST}", "--gin_bindings=TextFiles.paths = 'text.txt'")
FILES = [
    "checkpoints",
    "config.gin",
    "environment.json",
    "history.jsonl",
    "metrics.jsonl",
    "operative_config.gin",
    "provenance.json",
    "tokenizer",
]


def test_a_run_writes_a_complete_folder_and_resumes_from_it(train, work):
    first = train(*TINY, "--run_dir=run", check=0, is_warm=False)
    assert sorted(path.name for path in (work / "run").iterdir()) == FILES
    metrics = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in metrics] == [1, 2, 3, 4]
    assert {"step", "tokens", "loss", "grad_norm", "learning_rate", "tokens_per_second"} <= set(metrics[0])
    assert "step 4/4" in first.stdout
    assert (work / "run/checkpoints/step_4/operative_config.gin").read_text() == (
        work / "run/operative_config.gin"
    ).read_text()
    environment = json.loads((work / "run" / "environment.json").read_text())
    assert environment["packages"]["torch"]
    assert re.fullmatch("[0-9a-f]{64}", environment["data"]["sha256"])
    again = train(*TINY, "--run_dir=run", check=0)
    assert "resuming from run/checkpoints/step_4" in again.stdout


def test_the_default_folder_is_named_after_the_configuration_and_the_time(train, work):
    train(*TINY, check=0)
    (folder,) = (work / "runs").iterdir()
    assert re.fullmatch(r"tiny-\d{8}-\d{6}", folder.name)


def test_a_folder_of_another_configuration_is_refused_with_the_difference(train, work):
    train(*TINY, "--run_dir=run", "--dry_run", check=0)
    (work / "run" / "history.jsonl").write_text("{}\n")  # without it the folder holds only a dry run
    before = (work / "run" / "operative_config.gin").read_text()
    done = train(*TINY, "--gin.Linear.bias=True", "--run_dir=run", check=2)
    assert "run holds a run of another configuration" in done.stderr
    assert "- Linear.bias = False" in done.stderr
    assert "+ Linear.bias = True" in done.stderr
    assert (work / "run" / "operative_config.gin").read_text() == before


def test_a_dry_run_shows_the_model_writes_the_configuration_and_trains_nothing(train, work):
    done = train("--gin_file=recipes/tiny.gin", "--dry_run", "--run_dir=run", check=0)
    assert "block_0 ... block_1 (2 times): DecoderBlock" in done.stdout
    assert re.search(r"parameters +\d", done.stdout)
    assert re.search(r"FLOPs per token +\d", done.stdout)
    assert re.search(r"memory +\d", done.stdout)
    memory = r"memory of a step on c\w+\n(.+\n)*activations +[\d.]+ [KM]iB\n(.+\n)*peak +[\d.]+ MiB"
    assert re.search(memory, done.stdout)
    names = sorted(path.name for path in (work / "run").iterdir() if path.is_file())
    assert names == ["config.gin", "operative_config.gin", "provenance.json"]


def test_warnings_for_too_little_memory_and_repeated_data(train):
    large = ("--gin.LanguageModel.hidden_size=1048576", "--gin.GatedMLP.intermediate_size=1048576")
    dry = train(*TINY, *large, "--dry_run", "--run_dir=large", check=0)
    assert re.search(r"^warning: the run needs [\d.]+ TiB \(weights, gradients, optimizer state\)", dry.stderr, re.M)
    often = train(*TINY, "--gin.Trainer.num_steps=20", "--gin.TextFiles.paths='short.txt'", "--run_dir=often", check=0)
    assert re.search(r"^warning: the run reads its data \d\d times", often.stderr, re.M)
    assert "warning" not in train(*TINY, "--run_dir=fits", check=0).stderr


def test_explain_shows_the_value_its_source_and_the_overridden_values(train):
    done = train(
        *TINY, "--gin.query/Linear.bias=True", "--dry_run", "--run_dir=run", "--explain=query/Linear.bias", check=0
    )
    assert "Linear.bias = True    # flag, --gin_bindings[2]" in done.stdout
    assert "    at decoder/block_0_to_1/mixer/query" in done.stdout
    assert re.search(r"overrode False    # file, configs/models/llama.gin:\d+", done.stdout)
    assert "overrode True    # default" in done.stdout


@pytest.mark.parametrize("flag", ["--help", "--helpfull"])
def test_help_exits_with_0(train, flag):
    assert "--dry_run" in train(flag, check=0).stdout


MISTAKES = {
    "no with a value": (("--nodry_run=1",), "--nodry_run=1 does not take an argument"),
    "part that does not fit": (
        (*TINY, "--run_dir=run", "--gin.DecoderBlock.mixer=@RMSNorm"),
        "RMSNorm at decoder/block_0_to_1/mixer cannot be called",
    ),
    "no configuration": ((), "no configuration: name one with --gin_file=base.gin. There are base.gin"),
    "file": (("--gin_file=bas.gin",), "there is no configuration file 'bas.gin'; did you mean 'base.gin'?"),
    "flag": (("--gin_fiel=base.gin",), "Unknown command line flag 'gin_fiel'. Did you mean: gin_file ?"),
    "argument": (("base.gin",), "unexpected argument 'base.gin'; did you mean --gin_file=base.gin?"),
    "binding": ((*TINY, "--gin.Linear.biass=False"), "--gin_bindings[2]: Linear has no parameter 'biass'"),
    "text": ((*TINY, "--gin.TextFiles.paths='no/such'"), "no such file or folder: no/such (TextFiles.paths"),
    "pattern": ((*TINY, "--dry_run", "--explain=nothing_like_it"), "no parameter matches --explain=nothing_like_it"),
    "positions": (
        (*TINY, "--gin.Embeddings.position=@PositionEmbedding", "--gin.PositionEmbedding.num_positions=32"),
        "Trainer.sequence_length must be at most 32, the positions of the model, not 64",
    ),
    "vocabulary": ((*TINY, "--gin.LanguageModel.vocab_size=100"), "LanguageModel.vocab_size is 100"),
    "all frozen": ((*TINY, "--gin.LanguageModel.lr_scale=0.0"), "has nothing to train: every lr_scale is 0"),
    "empty text": ((*TINY, "--gin.TextFiles.paths='empty.txt'"), "the training text has 0 tokens"),
    "explain alone": ((*TINY, "--explain=Linear.bias"), "--explain goes with --dry_run"),
    "run to start from": ((*TINY, "--init_from=nowhere"), "there is no run in nowhere"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_gives_one_message_exit_code_2_and_no_files(train, work, arguments, message):
    done = train(*arguments, check=2)
    assert message in done.stderr
    assert not (work / "runs").exists()


def test_bindings_without_effect_can_be_allowed(train):
    refused = train(*TINY, "--gin.qeury/Linear.bias=True", "--dry_run", check=2)
    assert "there is no scope 'qeury' in the model; did you mean 'query'?" in refused.stderr
    allowed = train(*TINY, "--gin.qeury/Linear.bias=True", "--dry_run", "--allow_unused_bindings", check=0)
    assert "1 warning in the configuration" in allowed.stderr


def test_help_lists_the_flags(train):
    done = train("--help")
    for flag in ("gin_file", "gin_bindings", "gin_search_path", "run_dir", "dry_run", "explain", "init_from"):
        assert flag in done.stdout


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_read_only_folder_is_an_error(train, work):
    (work / "locked").mkdir(mode=0o500)
    done = train(*TINY, "--run_dir=locked/run", check=1)
    assert "cannot create locked/run" in done.stderr


def test_a_file_in_place_of_the_folder_is_an_error(train, work):
    (work / "taken").write_text("")
    done = train(*TINY, "--run_dir=taken/run", check=1)
    assert "cannot create taken/run: Not a directory" in done.stderr


def test_a_checkpoint_that_the_disk_does_not_take_is_a_message(train, work):
    """The system limits the size of files, as a full disk would."""
    limited = f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000)); \
sys.argv = {[str(ROOT / 'train.py'), *TINY, '--run_dir=run']!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", limited], cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.search(
        r"the checkpoint of step \d could not be written to run/checkpoints: .*; there is no earlier one", done.stderr
    )
    assert "Traceback" not in done.stderr
    assert list((work / "run/checkpoints").iterdir()) == []
    train(*TINY, "--run_dir=run", check=0)


def test_a_dry_run_requires_the_teacher_of_a_distillation(train, work):
    teacher = ["--gin.Trainer.distillation=@Distillation", "--gin.Distillation.teacher='nowhere'"]
    done = train(*TINY, *teacher, "--dry_run", "--run_dir=run", check=2)
    assert "there is no run in nowhere" in done.stderr
    assert not (work / "run").exists()


def test_a_truncated_checkpoint_is_named_and_the_previous_one_is_used(train, work):
    train(*TINY, "--gin.Checkpoints.every=2", "--run_dir=run", check=0)
    shutil.copytree(work / "run", work / "whole")
    weights = work / "run/checkpoints/step_4/__0_0.distcp"
    weights.write_bytes(weights.read_bytes()[:-100])
    done = train(*TINY, "--gin.Checkpoints.every=2", "--run_dir=run", check=0)
    assert "skipping checkpoint run/checkpoints/step_4: __0_0.distcp has" in done.stdout
    assert "resuming from run/checkpoints/step_2" in done.stdout
    assert weights.read_bytes() == (work / "whole/checkpoints/step_4/__0_0.distcp").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_exits_with_0_and_resumes_to_the_same_result(train, work, number):
    many = (*TINY, "--gin.Trainer.num_steps=120", "--gin.DecoderBlock.dropout=0.1")
    train(*many, "--run_dir=whole", check=0)
    command = [sys.executable, str(ROOT / "train.py"), *many, "--run_dir=stopped"]
    process = subprocess.Popen(command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step 20/"):
            process.send_signal(number)
            break
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert re.search(r"stopped after step \d+ of 120 and saved", rest)
    train(*many, "--run_dir=stopped", check=0)
    ours, theirs = (work / run / "checkpoints/step_120/__0_0.distcp" for run in ("stopped", "whole"))
    assert ours.read_bytes() == theirs.read_bytes()
    ours, theirs = ([_measured(line) for line in (work / run / "metrics.jsonl").open()] for run in ("stopped", "whole"))
    assert ours == theirs
    assert [record["step"] for record in ours] == list(range(1, 121))


def _measured(line: str) -> dict:
    """A record without values that depend on the clock."""
    return {key: value for key, value in json.loads(line).items() if key not in MACHINE_METRICS}


def test_a_run_can_start_from_the_weights_of_another(train, work):
    train(*TINY, "--run_dir=first", check=0)
    done = train(*TINY, "--init_from=first", "--run_dir=second", check=0)
    assert "starting from the weights of step 4 (first/checkpoints/step_4, SHA-256 " in done.stdout
