"""The weight average against torch's and the formula, and its uses."""

import contextlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ml.config import ConfigError
from ml.training import ExponentialMovingAverage
from ml.training.optimizers import ParameterGroup
from ml.training.step import train_step

CPU = torch.device("cpu")
AVERAGE = "Trainer.weight_average = @ExponentialMovingAverage"


def walk(settings, num_steps, dtype=torch.float64):
    """A weight that wanders, its average after each step, and the weights."""
    parameter = nn.Parameter(torch.zeros(5, dtype=dtype))
    average = settings.start([ParameterGroup(1.0, None, ["a"], [parameter])])
    random = torch.Generator().manual_seed(0)
    weights, averages = [], []
    for step in range(1, num_steps + 1):
        parameter.data += torch.randn(5, generator=random).to(dtype)
        average.update(step, None)
        weights.append(parameter.detach().double().numpy().copy())
        averages.append(average.tensors()["a"].double().numpy().copy())
    return weights, averages, average


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("start", [0, 4])
@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_is_that_of_the_formula(every, start, warmup):
    settings = ExponentialMovingAverage(decay=0.8, every=every, start=start, warmup=warmup)
    weights, averages, _ = walk(settings, 20)
    expected, num_updates = np.zeros(5), 0
    for step, (weight, ours) in enumerate(zip(weights, averages, strict=True), start=1):
        if step > start and (step - start) % every == 0:
            decay = min(0.8, (1 + num_updates) / (10 + num_updates)) if warmup else 0.8
            expected = weight if num_updates == 0 else decay * expected + (1 - decay) * weight
            num_updates += 1
        np.testing.assert_allclose(ours, expected, rtol=1e-13, atol=1e-15)


def test_the_average_is_that_of_torch(tiny):
    trainer = tiny(AVERAGE, "ExponentialMovingAverage.decay = 0.7", "ExponentialMovingAverage.warmup = False")
    dataset, state = trainer.open_data().training, trainer.start(CPU)
    theirs = AveragedModel(state.model, multi_avg_fn=get_ema_multi_avg_fn(0.7))
    for step in range(1, 6):
        train_step(state, trainer.batches(dataset, step), trainer.precision, 1.0, CPU)
        theirs.update_parameters(state.model)
    expected = dict(theirs.module.named_parameters())
    ours = state.weight_average.tensors()
    assert ours.keys() == expected.keys()
    for name, average in ours.items():
        torch.testing.assert_close(average, expected[name])
        assert not torch.equal(average, state.trained()[name])


def test_what_is_in_bfloat16_is_averaged_in_float32():
    """Each update is smaller than what bfloat16 can add to the average."""
    settings = ExponentialMovingAverage(decay=0.999, warmup=False)
    weights, averages, average = walk(settings, 50, torch.bfloat16)
    expected = weights[0]
    for weight in weights[1:]:
        expected = 0.999 * expected + 0.001 * weight
    assert average.tensors()["a"].dtype == torch.float32
    np.testing.assert_allclose(averages[-1], expected, rtol=1e-5, atol=1e-6)


def test_of_tied_weights_there_is_one_average_and_of_frozen_ones_none(tiny):
    frozen = "block_0/DecoderBlock.lr_scale = 0.0"
    state = tiny(AVERAGE, "LanguageModel.tie_word_embeddings = True", frozen).start(CPU)
    names = state.weight_average.tensors().keys()
    assert names == state.trained().keys()
    assert "embeddings.token.weight" in names
    assert not any(name.startswith(("head.weight", "decoder.block_0")) for name in names)


@pytest.mark.parametrize("precision", ["Float32", "PureBFloat16"])
def test_the_model_has_the_average_as_its_weights_for_a_while(tiny, precision):
    trainer = tiny(AVERAGE, "ExponentialMovingAverage.start = 2", f"Trainer.precision = @{precision}")
    dataset, state = trainer.open_data().training, trainer.start(CPU)
    for step in range(1, 6):
        train_step(state, trainer.batches(dataset, step), trainer.precision, 1.0, CPU)
    before = {name: (weight.data_ptr(), weight.clone()) for name, weight in state.trained().items()}
    averages = state.weight_average.tensors()
    with state.weight_average.in_place_of_weights(state.model):
        for name, weight in state.trained().items():
            assert torch.equal(weight, averages[name].to(weight.dtype))
            assert weight.data_ptr() == before[name][0]
    with contextlib.suppress(KeyboardInterrupt), state.weight_average.in_place_of_weights(state.model):
        raise KeyboardInterrupt
    for name, weight in state.trained().items():
        pointer, value = before[name]
        assert weight.data_ptr() == pointer
        assert torch.equal(weight, value)


def test_a_run_with_an_average_is_the_run_without_one_and_measures_both(tiny, run_in):
    plain, _, _ = run_in(tiny(), "plain")
    averaged, _, _ = run_in(tiny(AVERAGE, "ExponentialMovingAverage.decay = 0.0"), "averaged")
    late, _, _ = run_in(tiny(AVERAGE, "ExponentialMovingAverage.start = 7"), "late")
    unmeasured, _, _ = run_in(tiny(AVERAGE, "ExponentialMovingAverage.validate = False"), "unmeasured")
    for record, *others in zip(*(folder.metrics() for folder in (plain, averaged, late, unmeasured)), strict=True):
        for other in others:
            assert {key: other[key] for key in ("loss", "grad_norm")} == {k: record[k] for k in ("loss", "grad_norm")}
            assert other.get("validation_loss") == record.get("validation_loss")
        # With decay 0 the average is the weights themselves.
        assert others[0].get("average_validation_loss") == record.get("validation_loss")
        assert others[0].get("average_validation_bits_per_byte") == record.get("validation_bits_per_byte")
        assert ("average_validation_loss" in others[1]) == (record["step"] in (10, 12))
        assert "average_validation_loss" not in others[2]


def test_everything_that_is_to_be_kept_is_in_its_tensors(tiny):
    """A state that gets the tensors of another one continues bitwise like it."""
    trainers = [tiny(AVERAGE, "ExponentialMovingAverage.every = 2", "Trainer.skip_step = @SkipStep") for _ in range(2)]
    dataset = trainers[0].open_data().training
    first, second = (trainer.start(CPU) for trainer in trainers)
    for step in range(1, 6):
        train_step(first, trainers[0].batches(dataset, step), trainers[0].precision, 1.0, CPU)
    with torch.no_grad():
        for (name, weight), other in zip(first.trained().items(), second.trained().values(), strict=True):
            other.copy_(weight)
            for key, tensor in second.optimizer.state[other].items():
                tensor.copy_(first.optimizer.state[first.trained()[name]][key])
        for part in ("weight_average", "skip_step"):
            for name, tensor in getattr(second, part).tensors().items():
                tensor.copy_(getattr(first, part).tensors()[name])
    second.step = first.step
    for step in range(6, 10):
        for state, trainer in zip((first, second), trainers, strict=True):
            torch.manual_seed(step)
            train_step(state, trainer.batches(dataset, step), trainer.precision, 1.0, CPU)
    ours, theirs = first.weight_average.tensors(), second.weight_average.tensors()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(map(torch.equal, first.trained().values(), second.trained().values()))


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("ExponentialMovingAverage.decay = 1.0", r"decay must be in \[0, 1\)"),
        ("ExponentialMovingAverage.every = 0", "every must be positive"),
        ("ExponentialMovingAverage.start = -1", "start must not be negative"),
    ],
)
def test_values_out_of_range_are_refused_by_name(tiny, binding, message):
    with pytest.raises(ConfigError, match=message):
        tiny(AVERAGE, binding)
