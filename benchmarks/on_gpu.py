"""Everything that one GPU can tell in the time that there is: python benchmarks/on_gpu.py --minutes=8

Runs the tests with the mark `gpu`, then the rows of `gpu_rows.py`, the most important first. Each row is appended to
OUTPUT.jsonl and OUTPUT.txt once it is measured, so that any amount of time yields whole rows. A row that fails does not
stop the others; the exit code is then 1. Needs no network and no file outside the repository; pytest and transformers
are used where they are installed. Without a GPU, the same rows are measured at small sizes on the CPU.
"""

import argparse
import datetime
import gc
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from gpu_rows import Row, rows

ROOT = Path(__file__).resolve().parents[1]
TEST_SHARE = 0.4  # of the time, at most
SECONDS_OF_A_ROW = 20.0  # a row does not begin with less time left


class Report:
    """Appends results to OUTPUT.jsonl and OUTPUT.txt, and prints them.

    Attributes:
        failed: The rows with an error.
    """

    def __init__(self, output: Path):
        output.parent.mkdir(parents=True, exist_ok=True)
        self._json, self._text = (output.with_name(f"{output.name}.{suffix}") for suffix in ("jsonl", "txt"))
        self.failed: list[str] = []
        for file in (self._json, self._text):
            file.write_text("")

    def add(self, table: str, name: str, values: dict[str, Any]) -> None:
        """Appends a row."""
        if "error" in values:
            self.failed.append(f"{table} | {name}")
        with self._json.open("a") as file:
            file.write(json.dumps({"table": table, "row": name, **values}) + "\n")
        shown = ", ".join(f"{key} {_readable(value)}" for key, value in values.items())
        with self._text.open("a") as file:
            file.write(f"{table} | {name} | {shown}\n")
        print(f"{table} | {name} | {shown}", flush=True)


def _readable(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def machine(device: torch.device) -> dict[str, Any]:
    """Returns the device, the versions and the date."""
    properties: dict[str, Any] = {"device": platform.processor() or platform.machine()}
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        properties = {"device": found.name, "memory_gib": found.total_memory / 2**30, "cuda": torch.version.cuda}
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    return {**properties, "torch": torch.__version__, "python": platform.python_version(), "date": date}


def run_tests(seconds: float) -> dict[str, Any]:
    """Runs the tests with the mark `gpu`; returns the end of the output of pytest, and the lines of failures."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "--tb=short", "-p", "no:cacheprovider"]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:  # with the processes that the tests have started
                os.killpg(process.pid, signal.SIGKILL)
        output.seek(0)
        lines = output.read().strip().splitlines()
    summary = {"passed": sum(" PASSED" in line for line in lines), "last_line": lines[-1] if lines else ""}
    failures = [line for line in lines if " FAILED" in line or line.startswith(("FAILED", "ERROR", "E  "))][:20]
    if code is None:
        summary["not_finished_in_s"] = seconds
    if code or failures:
        return {"error": f"pytest exited with {code}", "failures": failures, **summary}
    return summary


def measured(row: Row) -> dict[str, Any]:
    """Returns the values of a row; an error is a value, so that the next row is measured."""
    begun = time.perf_counter()
    try:
        values = row.measure()
    except Exception as error:  # such as a kernel that is missing, or memory that is full
        values = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    torch.compiler.reset()
    return {**values, "row_seconds": time.perf_counter() - begun}


def main(arguments: list[str] | None = None) -> int:
    """Measures all rows; returns the exit code, 1 if a test or a row has failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d_%H%M%S")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all of it (default 8)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(f"on_gpu_{now}"),
        help="the files without their suffixes (default %(default)s)",
    )
    parser.add_argument("--tests", action=argparse.BooleanOptionalAction, default=True, help="run the tests first")
    chosen = parser.parse_args(arguments)
    deadline = time.monotonic() + 60.0 * chosen.minutes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report = Report(chosen.output)
    report.add("machine", "", machine(device))
    if chosen.tests:
        report.add("tests", "-m gpu", run_tests(TEST_SHARE * 60.0 * chosen.minutes))
    for row in rows(device):
        if deadline - time.monotonic() < SECONDS_OF_A_ROW:
            report.add(row.table, row.name, {"skipped": f"less than {SECONDS_OF_A_ROW:.0f} s left"})
        else:
            report.add(row.table, row.name, measured(row))
    if report.failed:
        print(f"{len(report.failed)} failed: {'; '.join(report.failed)}", file=sys.stderr)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
