"""Files of a run folder."""

import json
import subprocess

import pytest

from ml.training import RunFailure, RunFolder, environment


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "runs/one")
    folder.create()
    return folder


def test_the_configuration_is_written_and_read_back(run):
    assert run.operative_config() is None
    run.write_config("# set\n", "# all\n", {"fingerprint": "abc", "records": []})
    assert run.config.read_text() == "# set\n"
    assert run.operative_config() == "# all\n"
    assert json.loads(run.provenance.read_text())["fingerprint"] == "abc"
    assert sorted(path.name for path in run.path.iterdir()) == [
        "checkpoints",
        "config.gin",
        "operative_config.gin",
        "provenance.json",
    ]


def test_metrics_are_flushed_and_a_truncated_line_is_skipped(run):
    for step in (1, 2, 3):
        run.append_metrics({"step": step, "loss": 1.0 / step})
    with run.metrics_file.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [record["step"] for record in RunFolder(run.path).metrics()] == [1, 2, 3]
    run.truncate_metrics(2)
    assert run.metrics_file.read_text() == '{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n'


def test_a_folder_without_metrics_has_none(run):
    assert run.metrics() == []


def test_the_environment_keeps_the_earlier_starts(run):
    run.write_environment()
    first = json.loads(run.environment.read_text())
    assert first["packages"]["torch"]
    assert first["command"]
    run.write_environment()
    second = json.loads(run.environment.read_text())
    first.pop("earlier")
    assert second["earlier"] == [first]


def test_a_machine_without_git_has_no_revision(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment.describe_environment()["git"] is None


def test_the_revision_and_whether_it_was_changed_are_recorded(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert environment._git(tmp_path) is None
    git("init")
    (tmp_path / "__init__.py").write_text("")
    assert environment._git(tmp_path) is None
    git("add", ".")
    git("commit", "-m", "first")
    assert environment._git(tmp_path) == {"revision": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "__init__.py").write_text("changed")
    assert environment._git(tmp_path)["dirty"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunFailure, match=r"cannot create .*file/run"):
        RunFolder(tmp_path / "file/run").create()
