"""Runs of a tiny trainer, whole on one process or divided over several, and what they measured."""

import contextlib
import io
from typing import Any

import torch

from ml.config import load
from ml.distributed import Layout, World
from ml.training import RunFolder, Trainer, train

TINY = """
LanguageModel.vocab_size = 256
LanguageModel.hidden_size = 32
Repeat.num_blocks = 2
Attention.num_heads = 4
Attention.num_kv_heads = 2
GatedMLP.intermediate_size = 64
AdamW.learning_rate = 1e-2
CosineSchedule.warmup_steps = 2
Trainer.num_steps = 4
Trainer.batch_size = 8
Trainer.sequence_length = 16
Trainer.log_every = 1
Trainer.peak_flops = 1e12
Checkpoints.every = None
Validation.every = 2
Validation.num_tokens = 500
"""


def squares(count: int) -> str:
    """Returns a text to train on."""
    return "".join(f"{number} squared is {number * number}.\n" for number in range(count))


def built(text_file: str, bindings: tuple[str, ...] = ()) -> Trainer:
    """Builds the tiny trainer with further bindings."""

    def on_meta() -> Trainer:
        with torch.device("meta"):
            return Trainer()

    return load(bindings=[TINY, f"TextFiles.paths = {text_file!r}", *bindings], root=on_meta).build(on_meta)


def trained(
    world: World, folder: str, text_file: str, bindings: tuple[str, ...] = (), mesh: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """Trains in a folder and returns the metrics, read by every process."""
    trainer = built(text_file, (*bindings, *mesh))
    layout = Layout.of(world, trainer.mesh_sizes(world.size))
    with contextlib.closing(io.StringIO()) as stream:
        train(trainer, trainer.open_data(), RunFolder(folder), layout.device, layout=layout, stream=stream)
    world.barrier()
    return RunFolder(folder).metrics()


def all_trained(world: World, folder: str, text_file: str, cases: list[tuple[tuple, tuple]]) -> list[list[dict]]:
    """Trains several cases (bindings, mesh) one after the other; saves the time to start processes."""
    return [trained(world, f"{folder}/{index}", text_file, *case) for index, case in enumerate(cases)]
