"""Runs that earlier releases left, stopped after step 10 of 20, are resumed as if there had been no other release."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest

import ml
from ml.cli.train import main

RELEASES = sorted(Path(__file__).parents[1].joinpath("old_runs").iterdir(), key=lambda folder: folder.name)


@pytest.fixture(params=RELEASES, ids=lambda folder: folder.name)
def old_run(request, tmp_path, monkeypatch):
    """A copy of the folder of a release, which is the working folder, with the run in `run/`."""
    folder = shutil.copytree(request.param, tmp_path / "release")
    with tarfile.open(folder / "run.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    monkeypatch.chdir(folder)
    return folder


def lines_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("file", ["config.gin", "run/operative_config.gin"])
def test_an_old_run_is_resumed_to_the_metrics_of_its_release(old_run, file, capsys):
    before = lines_of(old_run / "run/metrics.jsonl")
    with pytest.raises(SystemExit) as ended:
        main([f"--gin_file={file}", "--run_dir=run"])
    assert ended.value.code == 0, capsys.readouterr().err
    assert "resuming from run/checkpoints/step_10" in capsys.readouterr().out
    found, expected = lines_of(old_run / "run/metrics.jsonl"), lines_of(old_run / "expected_metrics.jsonl")
    assert found[: len(before)] == before
    assert [record["step"] for record in found] == [1, 5, 10, 15, 20]
    for record, wanted in zip(found, expected, strict=True):
        # Float32 sums in another order, by another release of torch or on another CPU, differ by about 1e-6 a step.
        assert {name: record[name] for name in wanted} == pytest.approx(wanted, rel=1e-4)


def test_an_old_run_is_opened_and_generates(old_run):
    run = ml.open_run("run")
    assert run.step == 10
    assert not run.is_finished
    assert len(run.generate("1 squared", num_tokens=5, temperature=0.0, average=True)) > 0
