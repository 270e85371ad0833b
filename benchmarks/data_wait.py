"""Time that training waits for batches: `next()` in a training loop, relative to the step.

python benchmarks/data_wait.py [--steps=20] [--small]
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import ml
from ml.api import build_trainer
from ml.data import ByteTokenizer
from ml.data.corpora.standard_library import standard_library_files
from ml.data.prefetch import prefetched
from ml.data.token_files.writing import TokenWriter
from ml.training.step import train_step

CPU = torch.device("cpu")
SMALL = [  # model and batches of base.gin
    "Trainer.batch_size = 16",
    "Trainer.sequence_length = 128",
    "Trainer.precision = @Float32",
    "LanguageModel.hidden_size = 128",
    "LanguageModel.vocab_size = 512",
    "decoder/Repeat.num_blocks = 4",
    "Attention.num_heads = 4",
    "Attention.num_kv_heads = 2",
    "GatedMLP.intermediate_size = 384",
]
DATA = {
    "windows": ["TokenFiles.sampling = @ShuffledEpochs"],
    "packed documents": ["TokenFiles.sampling = @PackedDocuments"],
    "filled in the middle, packed": [
        "TokenFiles.sampling = @PackedDocuments",
        "TokenFiles.fill_in_the_middle = @FillInTheMiddle",
        "FillInTheMiddle.prefix = 256",
        "FillInTheMiddle.suffix = 257",
        "FillInTheMiddle.middle = 258",
    ],
}


def prepare(folder: Path) -> None:
    """Writes the standard library as token files."""
    _, files = standard_library_files()
    writer = TokenWriter(folder, ByteTokenizer(), shard_tokens=2**22)
    for file in sorted(files):
        tokens = np.append(ByteTokenizer().encode(file.read_text("utf-8", errors="replace")), np.uint8(0))
        writer.append(tokens, np.array([len(tokens)]), len(tokens) - 1)
    writer.finish({})


def measure(name: str, bindings: list[str], num_steps: int) -> None:
    """Prints the time of a batch without training, and the waits in a training loop."""
    trainer = build_trainer(ml.load("recipes/token_files_30m.gin", bindings))
    dataset = trainer.open_data().training
    state = trainer.start(CPU)
    alone = []
    for step in range(1, 101):
        begun = time.perf_counter()
        trainer.batches(dataset, step)
        alone.append(time.perf_counter() - begun)
    steps = prefetched(lambda step: trainer.batches(dataset, step), range(1, num_steps + 3), trainer.num_loader_workers)
    waits, took = [], []
    for _ in range(num_steps + 2):
        begun = time.perf_counter()
        batches = next(steps)
        waited = time.perf_counter()
        train_step(state, batches, trainer.precision, trainer.max_grad_norm, CPU)
        waits.append(waited - begun)
        took.append(time.perf_counter() - begun)
    waits, took = waits[2:], took[2:]  # the first two warm up
    print(
        f"{name:<30} batch {statistics.median(alone) * 1e3:7.2f} ms   step {statistics.median(took) * 1e3:9.1f} ms   "
        f"wait {statistics.median(waits) * 1e3:6.3f} ms (longest {max(waits) * 1e3:.3f} ms), "
        f"{sum(waits) / sum(took):.5%} of the time"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--small", action="store_true", help="use the model of base.gin instead of 30 million parameters"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder) / "tokens")
        common = [f"TokenFiles.paths = '{folder}/tokens'", "TokenFiles.validation_fraction = 0.01"]
        common += ["Trainer.compile = False", *(SMALL if arguments.small else [])]
        for name, bindings in DATA.items():
            measure(name, [*common, *bindings], arguments.steps)


if __name__ == "__main__":
    main()
