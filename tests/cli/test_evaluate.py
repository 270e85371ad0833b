"""`python -m ml evaluate` and `generate`, mostly called in process."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F
from warm_python import run_python

import ml
from ml.cli.verbs import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Creates a working folder with a trained run and texts."""
    path = tmp_path_factory.mktemp("evaluate")
    (path / "text.txt").write_text("one two three four five six seven. " * 40)
    (path / "books.txt").write_text("A tale of two cities. " * 10)
    small = [
        "Trainer.num_steps=2", "CosineSchedule.warmup_steps=1", "TextFiles.paths=['text.txt']",
        "TextData.validation_fraction=0.1", "Trainer.validation={'held_out': @Validation, 'books': @Validation}",
        "books/Validation.data=@TextData", "books/TextFiles.paths='books.txt'",
    ]  # fmt: skip
    with contextlib.chdir(path):
        ml.train(ml.load("recipes/tiny.gin", small), "run")
    (path / "more").mkdir()
    (path / "more" / "a.txt").write_text("seven six five")
    (path / "more" / "b.md").write_text("not read")
    (path / "more" / "empty.txt").write_text("")
    return path


@pytest.fixture
def call(folder, monkeypatch, capsys):
    """Calls a verb in this process."""

    def run(*arguments, check=0):
        monkeypatch.chdir(folder)
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert code == check, captured.out + captured.err
        return captured.out if check == 0 else captured.err

    return run


@pytest.fixture
def process(folder):
    """Calls a verb in a separate process."""

    def run(*arguments, check=0, stdin=""):
        done = run_python("-m", "ml", *map(str, arguments), cwd=folder, stdin=stdin)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == check, done.stdout + done.stderr
        return done.stdout if check == 0 else done.stderr

    return run


def test_texts_are_evaluated_separately_and_together(call, process, folder):
    found = json.loads(call("evaluate", "run", "--data", "more", "books.txt", "--pattern", "*.txt", "--json"))
    assert [text["name"] for text in found["texts"]] == ["a.txt", "books.txt"]
    model = ml.open_run(folder / "run").build()
    tokens = torch.tensor(list(b"\0seven six five"))
    with torch.no_grad():
        costs = F.cross_entropy(model(tokens[None, :-1])[0].double(), tokens[1:], reduction="sum").item()
    assert found["texts"][0]["loss"] == pytest.approx(costs / 14, rel=1e-5)
    tokens = sum(text["tokens"] for text in found["texts"])
    loss = sum(text["loss"] * text["tokens"] for text in found["texts"]) / tokens
    assert (found["all"]["tokens"], found["all"]["loss"]) == (tokens, pytest.approx(loss))
    assert (found["step"], found["context"], found["stride"]) == (2, 64, 32)
    table = process("evaluate", "run", "--data", "more", "books.txt", "--pattern", "*.txt").splitlines()
    assert [line.split()[0] for line in table] == ["step", "name", "a.txt", "books.txt", "all"]
    assert len({len(line) for line in table[1:]}) == 1


def test_the_validation_sets_of_a_run_are_evaluated_as_in_training(call, folder):
    found = json.loads(call("evaluate", "run", "--json"))
    (record,) = [r for r in ml.open_run(folder / "run").metrics() if r["step"] == 2]
    for row in found["validation_sets"]:
        assert row["loss"] == pytest.approx(record[f"validation_{row['name']}_loss"], rel=1e-6)
        assert row["bits_per_byte"] == pytest.approx(record[f"validation_{row['name']}_bits_per_byte"], rel=1e-6)
    environment = json.loads((folder / "run" / "environment.json").read_text())
    assert environment["data"]["validation_sets"]["books"]["validation_tokens"] == 221


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "nowhere"), "no such file or folder: nowhere"),
        (("--data", "more/empty.txt"), "there is nothing to predict in more/empty.txt"),
        (("--data", "text.txt", "--context", "8", "--stride", "9"), "--stride=9 would skip tokens"),
        (("--data", "text.txt", "--tasks", "x"), "ask for one at a time"),
        pytest.param(
            ("--tasks", "no_such"), "no such task: no_such", marks=pytest.mark.slow
        ),  # lm_eval takes long to import
        (("--limit", "3"), "--limit goes with --tasks"),
        (("--stride", "3"), "--stride goes with --data"),
        (("--context", "3"), "--context goes with --data or --tasks"),
        (("--batch_size", "0"), "--batch_size must be positive"),
        (("--step", "77"), "there is no checkpoint of step 77"),
    ],
)
def test_an_impossible_evaluation_is_an_error(call, arguments, message):
    assert message in call("evaluate", "run", *arguments, check=2)


def test_generate_returns_objects_and_accepts_several_prompts(call, process):
    arguments = ("generate", "run", "--num_tokens", 8, "--seed", 3)
    prompts = ("--prompt", "one", "--prompt", "-", "--prompt", "")
    lines = process(*arguments, *prompts, "--num_samples", 2, "--json", stdin="two\n").splitlines()
    found = [json.loads(line) for line in lines]
    assert [(one["prompt"], one["sample"]) for one in found] == [(p, n) for p in ("one", "two", "") for n in (0, 1)]
    assert all(one["num_tokens"] <= 8 for one in found)
    assert found[0]["text"] != found[1]["text"]
    assert call(*arguments, "--prompt", "one") == f"one{found[0]['text']}\n"


def test_generate_continues_in_a_terminal_with_a_small_character_set(call, folder):
    command = [sys.executable, "-m", "ml", "generate", "run", "--prompt", "naïve", "--num_tokens", "30"]
    small = os.environ | {"PYTHONIOENCODING": "ascii"}  # read when an interpreter starts
    shown = subprocess.run(command, cwd=folder, env=small, capture_output=True, text=True, check=True).stdout
    assert shown.startswith("na?ve")
    assert "the prompt is not UTF-8" in call(
        "generate", "run", "--prompt", b"\xff".decode(errors="surrogateescape"), check=2
    )


def test_generate_stops_when_it_is_interrupted(folder):
    command = [sys.executable, "-m", "ml", "generate", "run", "--prompt", "one", "--num_tokens", "1000000"]
    process = subprocess.Popen(
        [*command, "--stop", "never"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.read(5)  # generation has started
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in errors
