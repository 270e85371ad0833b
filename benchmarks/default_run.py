"""Total time of the default run, and of the dry run of the largest recipe, as processes.

    python benchmarks/default_run.py [--picture=docs/images/default_run.png]

The picture needs the `plot` extra.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from timing import seconds

TRAIN = [sys.executable, str(Path(__file__).parents[1] / "train.py")]


def run(*arguments: str) -> float:
    """Returns the wall seconds of train.py with these arguments."""
    return seconds(lambda: subprocess.run([*TRAIN, *arguments], check=True, stdout=subprocess.DEVNULL))


def draw(records: list[dict[str, Any]], picture: Path) -> None:
    """Draws bits per byte over tokens, on the training text and on held-out files."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    steps = [(record["tokens"] / 1e6, record["loss"] / math.log(2)) for record in records]  # a token is a byte
    key = "validation_bits_per_byte"
    validations = [(record["tokens"] / 1e6, record[key]) for record in records if key in record]
    axes.plot(*zip(*steps, strict=True), color="#2f6bab", label="training, one step each")
    axes.plot(*zip(*validations, strict=True), color="#c4541f", marker="o", label="held-out files")
    title = "python train.py --gin_file=base.gin   (2 CPU cores, about a minute)"
    axes.set_title(title, loc="left", family="monospace", size=9)
    axes.set_xlabel("tokens (millions)")
    axes.set_ylabel("bits per byte")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path, help="where to draw the losses of the default run")
    picture = parser.parse_args().picture
    with tempfile.TemporaryDirectory() as folder:
        took = run("--gin_file=base.gin", "--gin_bindings=Linear.bias=False", f"--run_dir={folder}/default")
        records = [json.loads(line) for line in Path(folder, "default/metrics.jsonl").read_text().splitlines()]
        first, last = records[0], records[-1]
        if picture is not None:
            draw(records, picture)
        print(
            f"default run: {took:.0f} s, loss {first['loss']:.2f} -> {last['loss']:.2f} nats per byte, "
            f"validation {last['validation_bits_per_byte']:.2f} bits per byte"
        )
        tokens = "--gin.TokenFiles.paths='tokens'"  # a dry run needs no files
        took = run("--gin_file=recipes/llama_1b.gin", tokens, "--dry_run", f"--run_dir={folder}/large")
        print(f"dry run of recipes/llama_1b.gin: {took:.1f} s")


if __name__ == "__main__":
    main()
