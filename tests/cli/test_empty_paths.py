"""An empty path, as of an unset variable of a shell, is refused by every command and never means the working folder."""

import pytest

from ml.cli import train
from ml.cli.verbs import main

RUN = ["--gin_file=recipes/tiny.gin"]
COMMANDS = [
    ("run_dir", ["train", *RUN, "--run_dir="]),
    ("run_dir", ["train", *RUN, "--dry_run", "--run_dir="]),
    ("init_from", ["train", *RUN, "--init_from="]),
    ("gin_file", ["train", *RUN, "--gin_file="]),
    ("gin_search_path", ["train", *RUN, "--gin_search_path="]),
    ("run", ["generate", "", "--prompt=a"]),
    ("prompt_file", ["generate", "run", "--prompt_file="]),
    ("run", ["evaluate", ""]),
    ("data", ["evaluate", "run", "--data", "a.txt", ""]),
    ("task_folder", ["evaluate", "run", "--task_folder="]),
    ("run", ["export", "", "out"]),
    ("file", ["export", "run", ""]),
    ("RUN", ["plot", "run", ""]),
    ("output", ["plot", "run", "--output="]),
    ("a", ["diff", "", "base.gin"]),
    ("b", ["diff", "base.gin", ""]),
    ("run", ["explain", "", "*"]),
    ("sources", ["prepare", "a.txt", "", "--output=out"]),
    ("output", ["prepare", "a.txt", "--output="]),
    ("output", ["train_tokenizer", "a.txt", "--vocab_size=300", "--output="]),
    ("file", ["sweep", ""]),
    ("output", ["sweep", "sweeps/learning_rate.toml", "--output="]),
    ("destination", ["configs", "copy", "base.gin", ""]),
]


@pytest.mark.parametrize(("name", "command"), COMMANDS)
def test_an_empty_path_is_refused(name, command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    verb, *arguments = command
    with pytest.raises(SystemExit) as left:
        train.main(arguments) if verb == "train" else main([verb, *arguments])
    errors = capsys.readouterr().err
    assert left.value.code == 2
    assert name in errors
    assert "is empty; it must be a path" in errors
    assert not list(tmp_path.iterdir())
