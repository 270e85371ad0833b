"""Total time of the default run, and of the dry run of the largest recipe, as processes.

python benchmarks/default_run.py
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from timing import seconds

TRAIN = [sys.executable, str(Path(__file__).parents[1] / "train.py")]


def run(*arguments: str) -> float:
    """Returns the wall seconds of train.py with these arguments."""
    return seconds(lambda: subprocess.run([*TRAIN, *arguments], check=True, stdout=subprocess.DEVNULL))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        took = run("--gin_file=base.gin", "--gin_bindings=Linear.bias=False", f"--run_dir={folder}/default")
        records = [json.loads(line) for line in Path(folder, "default/metrics.jsonl").read_text().splitlines()]
        first, last = records[0], records[-1]
        print(
            f"default run: {took:.0f} s, loss {first['loss']:.2f} -> {last['loss']:.2f} nats per byte, "
            f"validation {last['validation_bits_per_byte']:.2f} bits per byte"
        )
        tokens = "--gin.TokenFiles.paths='tokens'"  # a dry run needs no files
        took = run("--gin_file=recipes/llama_1b.gin", tokens, "--dry_run", f"--run_dir={folder}/large")
        print(f"dry run of recipes/llama_1b.gin: {took:.1f} s")


if __name__ == "__main__":
    main()
