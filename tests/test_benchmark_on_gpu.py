"""The rows of `benchmarks/on_gpu.py`, measured on the CPU, and what it does with them."""

import json
from pathlib import Path

import pytest
import torch

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))


@pytest.fixture
def measure(monkeypatch, tmp_path):
    """Runs the command with other rows; returns its exit code, its JSON lines and its text lines."""
    import gpu_timing
    import on_gpu

    def call(rows, *arguments):
        found = [gpu_timing.Row("table", name, one) for name, one in rows.items()]
        monkeypatch.setattr(on_gpu, "rows", lambda device: found)
        output = tmp_path / "results.v1"
        try:
            code = on_gpu.main([f"--output={output}", *arguments])
        except KeyboardInterrupt:
            code = None
        lines = Path(f"{output}.jsonl").read_text().splitlines()
        return code, [json.loads(line) for line in lines], Path(f"{output}.txt").read_text().splitlines()

    return call


def failing(error):
    def fail():
        raise error

    return fail


def test_a_row_that_fails_does_not_stop_the_others_and_the_exit_code_is_1(measure, capsys):
    rows = {"first": lambda: {"ms": 1234.5}, "second": failing(RuntimeError("no kernel\nmore")), "third": dict}
    code, found, text = measure(rows, "--no-tests")
    assert code == 1
    assert [one["row"] for one in found] == ["", "first", "second", "third"]
    assert found[1]["ms"] == 1234.5
    assert found[2]["error"] == "RuntimeError: no kernel"
    assert text[1].startswith("table | first | ms 1,234")
    assert len(text) == 4
    assert "1 failed: table | second" in capsys.readouterr().err
    assert measure({"first": dict}, "--no-tests")[0] == 0


def test_an_interruption_leaves_the_rows_before_it_whole(measure):
    code, found, text = measure({"first": lambda: {"ms": 1.0}, "second": failing(KeyboardInterrupt())}, "--no-tests")
    assert code is None
    assert [one["row"] for one in found] == ["", "first"]
    assert len(text) == 2


def test_a_row_without_time_is_skipped(measure):
    code, found, _ = measure({"first": dict}, "--no-tests", "--minutes=0.1")
    assert (code, found[1]["skipped"]) == (0, "less than 20 s left")


@pytest.mark.parametrize(
    ("script", "seconds", "expected"),
    [
        ("print('a.py::b PASSED [100%]')", 60, {"passed": 1, "last_line": "a.py::b PASSED [100%]"}),
        (
            "import time; print('a.py::b PASSED', flush=True); time.sleep(99)",
            1,
            {"passed": 1, "last_line": "a.py::b PASSED", "not_finished_in_s": 1},
        ),
        (
            "print('a.py::b FAILED [50%]'); raise SystemExit(1)",
            60,
            {
                "error": "pytest exited with 1",
                "failures": ["a.py::b FAILED [50%]"],
                "passed": 0,
                "last_line": "a.py::b FAILED [50%]",
            },
        ),
    ],
    ids=["passed", "not finished", "failed"],
)
def test_the_tests_are_a_row(script, seconds, expected, monkeypatch, tmp_path):
    import on_gpu

    (tmp_path / "pytest.py").write_text(script)
    monkeypatch.setattr(on_gpu, "ROOT", tmp_path)  # `python -m` finds the module there
    assert on_gpu.run_tests(seconds) == expected


def test_rows_that_were_never_measured_on_a_gpu_come_first_there():
    from gpu_rows import rows

    names = [f"{row.table} | {row.name}" for row in rows(torch.device("cuda"))]
    assert len(set(names)) == len(names)
    assert names[:2] == [
        "training steps, bfloat16 | 124M compiled against transformers",
        "training steps, bfloat16 | 1B compiled against handwritten",
    ]
    last = max(index for index, name in enumerate(names) if not name.startswith("training step"))
    assert not any(name.startswith("training step") for name in names[2 : last + 1])


def test_every_row_that_does_not_compile_is_measured_on_a_cpu_or_has_a_reason(monkeypatch):
    import gpu_rows
    import gpu_timing

    monkeypatch.setattr(gpu_timing, "ROUNDS", 1)
    monkeypatch.setattr(gpu_rows, "ROUNDS", 1)
    monkeypatch.setattr(gpu_rows, "STEPS", 1)
    kinds = ("attention", "MLP", "recurrence", "checkpoint", "generation", "eager")
    found = set()
    for row in gpu_rows.rows(CPU):
        name = f"{row.table} | {row.name}"
        kind = next((kind for kind in kinds if kind in name), None)
        if kind is None:
            continue
        values = row.measure()
        assert values, name
        if "skipped" not in values:
            found.add(kind)
            assert all(value > 0 for value in values.values()), name
    assert found == set(kinds)


def test_the_recipe_whose_checkpoint_is_saved_on_a_gpu_can_be_built(monkeypatch):
    import gpu_rows

    class Built(Exception):
        pass

    def start(trainer, device):
        raise Built(sum(weight.numel() for weight in trainer.model.parameters()))

    monkeypatch.setattr("ml.training.Trainer.start", start)
    with pytest.raises(Built, match="124"):
        gpu_rows.checkpoint(CPU, "recipes/gpt2_124m.gin")
