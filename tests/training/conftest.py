"""A run small enough for tests: a real model with a few hundred weights on a short text."""

import io

import pytest
import torch

from ml.config import load
from ml.runs import open_teacher
from ml.training import RunFolder, Trainer, train

TINY = """
LanguageModel.vocab_size = 256
LanguageModel.hidden_size = 16
Repeat.num_blocks = 2
Attention.num_heads = 2
DecoderBlock.dropout = 0.2
AdamW.learning_rate = 1e-2
CosineSchedule.warmup_steps = 3
Trainer.num_steps = 12
Trainer.batch_size = 4
Trainer.micro_batch_size = 2
Trainer.sequence_length = 16
Trainer.log_every = 2
Checkpoints.every = 4
Checkpoints.keep = None
Validation.every = 5
"""


def build_on_meta():
    with torch.device("meta"):
        return Trainer()


@pytest.fixture
def text_file(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("".join(f"{number} squared is {number * number}.\n" for number in range(200)))
    return file


@pytest.fixture
def tiny_bindings(text_file):
    return [TINY, f"TextFiles.paths = {str(text_file)!r}"]


@pytest.fixture
def tiny(tiny_bindings):
    """Builds a small trainer with further bindings."""

    def build(*bindings):
        return load(bindings=[*tiny_bindings, *bindings], root=build_on_meta).build(build_on_meta)

    return build


@pytest.fixture
def run_in(tmp_path):
    """Trains in a folder, which is made, and returns the folder, the outcome and what was printed."""

    def run(trainer, name="run"):
        folder, stream = RunFolder(tmp_path / name), io.StringIO()
        cpu = torch.device("cpu")
        teacher = open_teacher(trainer, cpu)
        outcome = train(trainer, trainer.open_data(), folder, cpu, teacher=teacher, stream=stream)
        return folder, outcome, stream.getvalue()

    return run
