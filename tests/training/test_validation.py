"""The loss on held-out text, by brute force."""

import math

import pytest
import torch
import torch.nn.functional as F

from ml.data import DataError
from ml.training import Float32

CPU = torch.device("cpu")


@pytest.mark.parametrize("num_tokens", [None, 50])
def test_bits_per_byte_is_the_mean_over_single_bytes_each_predicted_once(tiny, num_tokens):
    trainer = tiny(f"Validation.num_tokens = {num_tokens}")
    state = trainer.start(CPU)
    dataset = trainer.data.open(trainer.sequence_length, trainer.seed)
    result = trainer.validation.measure(state.model, dataset, 3, Float32(), CPU)

    text = torch.from_numpy(dataset.validation.tokens.astype("int64"))
    end = len(text) - 1 if num_tokens is None else num_tokens
    nats = []
    state.model.eval()
    for place in range(end):
        context = text[place - place % 16 : place + 1]
        log_probabilities = F.log_softmax(state.model(context[None])[0, -1].double(), dim=-1)
        nats.append(-log_probabilities[text[place + 1]].item())
    # The logits of a longer context differ by rounding in float32.
    assert result.loss == pytest.approx(sum(nats) / end, rel=1e-5)
    assert result.bits_per_byte == pytest.approx(sum(nats) / end / math.log(2), rel=1e-5)


def test_measuring_leaves_the_model_in_training(tiny):
    trainer = tiny()
    state = trainer.start(CPU)
    dataset = trainer.data.open(trainer.sequence_length, trainer.seed)
    results = {trainer.validation.measure(state.model, dataset, 3, Float32(), CPU) for _ in range(2)}
    assert len(results) == 1
    assert all(module.training for module in state.model.modules())
    assert all(parameter.grad is None for parameter in state.model.parameters())


def test_validation_without_held_out_text_stops_before_the_first_step(tiny, run_in):
    with pytest.raises(DataError, match="no text is held out"):
        run_in(tiny("TextData.validation_fraction = 0.0"))


def test_a_run_without_validation_needs_no_held_out_text(tiny, run_in):
    folder, outcome, _ = run_in(
        tiny("TextData.validation_fraction = 0.0", "Trainer.validation = None", "Trainer.num_steps = 3")
    )
    assert outcome.is_finished
    assert all("validation_loss" not in record for record in folder.metrics())
