"""`python -m ml plot`."""

import json
import sys

import pytest
from PIL import Image

from ml.cli import verbs


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Creates a working folder with two runs in `runs` and one without metrics."""
    monkeypatch.chdir(tmp_path)
    for rate in (0.1, 0.2):
        folder = tmp_path / "runs" / f"run_{rate}"
        folder.mkdir(parents=True)
        (folder / "operative_config.gin").write_text(f"juniper.layer = 'file'\nAdamW.learning_rate = {rate}\n")
        records = [
            {
                "step": n,
                "tokens": n,
                "seconds": n,
                "loss": rate / n,
                "grad_norm": 1.0,
                "learning_rate": rate,
                "tokens_per_second": 1,
            }
            for n in range(1, 9)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "empty").mkdir()
    (tmp_path / "runs" / "new").mkdir()
    (tmp_path / "runs" / "new" / "operative_config.gin").write_text("A.b = 1\n")
    return tmp_path


def test_runs_are_plotted(work, capsys):
    assert verbs.main(["plot", "runs/run_0.1", "runs/run_0.2"]) == 0
    assert capsys.readouterr().out == "runs.png\n"
    width, height = Image.open(work / "runs.png").size
    assert width == 1650
    assert verbs.main(["plot", "runs/run_0.1", "--metric=grad_norm", "--log=loss", "--x=step", "--output=one.png"]) == 0
    assert Image.open(work / "one.png").height > height


def test_a_folder_selects_the_runs_in_it_with_metrics(work, monkeypatch):
    drawn = []
    monkeypatch.setattr("ml.plots.figure.draw", lambda curves, style: drawn.append((curves, style)))
    monkeypatch.setattr("ml.plots.figure.save", lambda figure, path: None)
    assert verbs.main(["plot", "runs", "--smoothing=3", "--log=x", "--x=seconds", "--metric=grad_norm"]) == 0
    ((curves, style),) = drawn
    assert [curve.label for curve in curves] == ["learning_rate=0.1", "learning_rate=0.2"]
    assert (style.x, style.extra_metrics, style.window, style.logarithmic) == ("seconds", ("grad_norm",), 3, {"x"})


def test_a_truncated_line_is_reported_and_skipped(work, capsys):
    with (work / "runs/run_0.1/metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    assert verbs.main(["plot", "runs/run_0.1"]) == 0
    assert "runs/run_0.1/metrics.jsonl: skipped the last line, which is incomplete" in capsys.readouterr().err


WRONG = {
    "no run": (["nowhere"], "there is no run in nowhere"),
    "nothing measured": (["runs/new"], "runs/new has no metrics yet"),
    "a folder without runs": (["empty"], "there is no run in empty"),
    "an unknown metric": (["runs", "--metric=grad"], "no run has measured 'grad'; did you mean 'grad_norm'?"),
    "an unknown axis": (["runs", "--log=y"], "--log=y: there is no such axis; there are x, loss, learning_rate"),
    "no smoothing": (["runs", "--smoothing=0"], "--smoothing must be positive, not 0"),
    "an unknown format": (["runs", "--output=a.doc"], "a.doc must end in .png"),
    "no such folder": (["runs", "--output=nowhere/a.png"], "cannot write nowhere/a.png"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_an_error_is_one_message(work, capsys, arguments, message):
    assert verbs.main(["plot", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_without_matplotlib_the_error_names_the_package_to_install(work, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert verbs.main(["plot", "runs"]) == 2
    assert "pip install 'juniper-trainer[plot]'" in capsys.readouterr().err
