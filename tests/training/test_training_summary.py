"""Training summary of a dry run."""

import re

import pytest
import torch

from ml.models.summary import summarize
from ml.training.summary import memory_of_training, summarize_training


def lines_of(trainer):
    return [re.split(r"\s{2,}", line) for line in summarize_training(trainer).splitlines()]


def test_every_group_has_a_line_with_its_optimizer_and_frozen_groups_are_named(tiny):
    trainer = tiny("Trainer.optimizer = @Muon", "block_0/DecoderBlock.lr_scale = 0.0", "mlp/Linear.lr_scale = 0.5")
    lines = lines_of(trainer)
    rows = [line for line in lines if line[0] in ("Muon", "AdamW", "nothing (frozen)")]
    seen = {(row[0], *row[1:4]): row[-1] for row in rows[:-1]}
    assert seen.keys() == {
        ("Muon", "0.0003", "1", "0.1"),
        ("Muon", "0.0003", "0.5", "0.1"),
        ("AdamW", "0.01", "1", "0.1"),
        ("AdamW", "0.01", "1", "0"),
        ("AdamW", "0.01", "0.5", "0"),
    }
    assert seen["AdamW", "0.01", "1", "0.1"] == "embeddings.token.weight, head.weight"
    assert rows[-1][0] == "nothing (frozen)"
    assert rows[-1][-1].startswith("decoder.block_0.")
    counts = [int(row[-2].replace(",", "")) for row in rows]
    assert sum(counts) == sum(parameter.numel() for parameter in trainer.model.parameters())
    tensors = [int(row[-3]) for row in rows]
    assert sum(tensors) == len(list(trainer.model.parameters()))


def test_the_learning_rate_is_shown_at_some_steps(tiny):
    line = summarize_training(tiny()).splitlines()[-1]
    shown = {int(step): float(rate) for rate, step in re.findall(r"([\d.e-]+) at (\d+)", line)}
    assert shown == pytest.approx({step: tiny().learning_rate(step) for step in (1, 3, 6, 9, 11, 12)}, rel=1e-2)


@pytest.mark.parametrize("precision", ["Float32", "PureBFloat16"])
@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "Lion", "Muon", "Adafactor"])
def test_the_memory_is_that_of_the_tensors_that_are_then_there(tiny, optimizer, precision):
    bindings = [f"Trainer.optimizer = @{optimizer}", f"Trainer.precision = @{precision}"]
    trainer = tiny(*bindings, "Trainer.weight_average = @ExponentialMovingAverage")
    state = tiny(*bindings, "Trainer.weight_average = @ExponentialMovingAverage").start(torch.device("cpu"))
    trainer.model.to(trainer.precision.parameter_dtype)
    kept = memory_of_training(trainer)
    tensors = [tensor for entry in state.optimizer.state.values() for tensor in entry.values()]
    assert kept == {
        "optimizer state": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        "average of the weights": 4 * sum(parameter.numel() for parameter in state.trained().values()),
    }
    assert "(weights, gradients, optimizer state, average of the weights; without" in summarize(trainer.model, 16, kept)
