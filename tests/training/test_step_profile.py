"""Code that runs in the steps of a training run."""

import sys
from pathlib import Path

import gin

import ml.config
import ml.training.step
from ml.training.loop import TrainLoop


def test_no_code_of_gin_or_of_the_configuration_runs_in_a_step(tiny, run_in, monkeypatch):
    called = set()
    advance = TrainLoop.advance

    def profiled(loop, batches, agreed):
        sys.setprofile(lambda frame, event, _: called.add(Path(frame.f_code.co_filename)))
        try:
            advance(loop, batches, agreed)
        finally:
            sys.setprofile(None)

    monkeypatch.setattr(TrainLoop, "advance", profiled)
    run_in(tiny())
    assert Path(ml.training.step.__file__) in called
    configuring = [Path(package.__file__).parent for package in (gin, ml.config)]
    assert not [file for file in called for folder in configuring if file.is_relative_to(folder)]
