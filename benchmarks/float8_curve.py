"""Loss of the default model with float8 products beside bfloat16: python benchmarks/float8_curve.py [--steps=500]

Trains base.gin with the same seed and data in MixedBFloat16, without and with `Linear.kernel = @Float8` in attention
and MLP layers. A device without float8 products emulates them, which shows the losses and not the speed; one without
bfloat16 products trains in Float32.
"""

import argparse
import contextlib
import io
import tempfile
from pathlib import Path

import torch

import ml
from ml.layers import Float8
from ml.training.products import multiplies_natively

WITHOUT = "without float8"
RUNS = {
    WITHOUT: [],
    "float8, tensorwise": ["decoder/Linear.kernel = @Float8", "Float8.scaling = 'tensorwise'"],
    "float8, rowwise": ["decoder/Linear.kernel = @Float8", "Float8.scaling = 'rowwise'"],
}


def curve(bindings: list[str], precision: str, num_steps: int, folder: Path) -> dict[int, tuple[float, float]]:
    """Returns training loss (nats per byte) and validation loss (bits per byte) of each validated step."""
    settings = [
        f"Trainer.precision = @{precision}",
        "Checkpoints.every = None",
        f"Trainer.num_steps = {num_steps}",
        f"Validation.every = {max(1, num_steps // 5)}",
        f"CosineSchedule.warmup_steps = {min(40, num_steps)}",
    ]
    config = ml.load("base.gin", bindings=[*settings, *bindings])
    with contextlib.redirect_stdout(io.StringIO()):
        run = ml.train(config, run_dir=folder)
    validated = [record for record in run.metrics() if "validation_bits_per_byte" in record]
    return {record["step"]: (record["loss"], record["validation_bits_per_byte"]) for record in validated}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    num_steps = parser.parse_args().steps
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = "MixedBFloat16" if multiplies_natively(device, torch.bfloat16) else "Float32"
    print(f"torch {torch.__version__}, {device.type}, {precision}: {Float8().warning(device) or 'products in float8'}")
    with tempfile.TemporaryDirectory() as folder:
        curves = {name: curve(bindings, precision, num_steps, Path(folder, name)) for name, bindings in RUNS.items()}
    print(f"{'step':>6}" + "".join(f"{name:>24}" for name in curves))
    for step in curves[WITHOUT]:
        print(f"{step:>6}" + "".join(f"{found[step][0]:>15.4f} {found[step][1]:>8.4f}" for found in curves.values()))


if __name__ == "__main__":
    main()
