"""Everything that one GPU can tell in the time that there is: python benchmarks/on_gpu.py --minutes=8

Runs the tests with the mark `gpu`, then the rows of `gpu_rows.py`, the most important first. Each row is appended to
OUTPUT.jsonl and OUTPUT.txt once it is measured, so that any amount of time yields whole rows. Needs no network and no
file outside of the repository; pytest and transformers are used where they are installed. Without a GPU, the same rows
are measured at small sizes on the CPU.
"""

import argparse
import datetime
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from gpu_rows import Row, rows

ROOT = Path(__file__).resolve().parents[1]
TEST_SHARE = 0.4  # of the time, at most
SECONDS_OF_A_ROW = 20.0  # a row is not begun with less time left


class Report:
    """Appends results to OUTPUT.jsonl and OUTPUT.txt, and prints them."""

    def __init__(self, output: Path):
        output.parent.mkdir(parents=True, exist_ok=True)
        self._json, self._text = output.with_suffix(".jsonl"), output.with_suffix(".txt")
        for file in (self._json, self._text):
            file.write_text("")

    def add(self, table: str, name: str, values: dict[str, Any]) -> None:
        """Appends a row."""
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
    """Runs the tests with the mark `gpu`; returns the summary of pytest, and of failures their last lines."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--tb=short", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"not finished in {seconds:.0f} s"}
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR", "E  "))]
    return {"exit_code": done.returncode, "summary": lines[-1] if lines else "", "failures": failed[:20]}


def measured(row: Row) -> dict[str, Any]:
    """Returns the values of a row; an error is a value, so that the next row is measured."""
    begun = time.perf_counter()
    try:
        values = row.measure()
    except Exception as error:  # such as a kernel that is missing, or memory that is full
        values = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    torch.compiler.reset()
    return {**values, "seconds": time.perf_counter() - begun}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all of it (default 8)")
    parser.add_argument("--output", type=Path, default=Path("on_gpu"), help="the files without their suffixes")
    parser.add_argument("--tests", action=argparse.BooleanOptionalAction, default=True, help="run the tests first")
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60.0 * arguments.minutes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report = Report(arguments.output)
    report.add("machine", "", machine(device))
    if arguments.tests:
        report.add("tests", "-m gpu", run_tests(TEST_SHARE * 60.0 * arguments.minutes))
    for row in rows(device):
        if deadline - time.monotonic() < SECONDS_OF_A_ROW:
            report.add(row.table, row.name, {"left_out": "no time"})
        else:
            report.add(row.table, row.name, measured(row))


if __name__ == "__main__":
    main()
