"""Skipped steps on spikes leave all state unchanged."""

import json
import math

import numpy as np
import pytest
import torch

from ml.config import ConfigError
from ml.training import RunFailure, SkipStep, loop
from ml.training.step import train_step

CPU = torch.device("cpu")
OPTIMIZERS = ["AdamW", "SGD", "Lion", "Muon", "Adafactor"]
ROUTED = """
DecoderBlock.mlp = @MixtureOfExperts
MixtureOfExperts.num_experts = 4
MixtureOfExperts.router = @SigmoidRouter
experts/GatedMLP.intermediate_size = 8
"""
AVERAGED = """
Trainer.weight_average = @ExponentialMovingAverage
ExponentialMovingAverage.warmup = False
"""
SKIP = "Trainer.skip_step = @SkipStep"


def spikes_by_brute_force(losses, norms, window, threshold, min_history, use_loss=True, use_norm=True):
    """The decisions, in float64, one step after the other."""
    taken, decisions = [], []
    for loss, norm in zip(losses, norms, strict=True):
        last = np.array(taken[-window:]).reshape(-1, 2)
        skip = not (math.isfinite(loss) and math.isfinite(norm))
        if len(last) >= min_history:
            limits = last.mean(0) + threshold * last.std(0, ddof=1)
            skip |= (use_loss and loss > limits[0]) or (use_norm and norm > limits[1])
        if not skip:
            taken.append((loss, norm))
        decisions.append(bool(skip))
    return decisions


@pytest.mark.parametrize(
    ("options", "compared"),
    [
        ({"window": 16, "threshold": 3.0, "min_history": 5}, {}),
        ({"window": 8, "threshold": 2.0, "min_history": 8, "loss": False}, {"use_loss": False}),
        ({"window": 40, "threshold": 2.0, "min_history": 2, "grad_norm": False}, {"use_norm": False}),
    ],
    ids=str,
)
def test_decisions_are_those_of_the_definition(options, compared):
    random = np.random.default_rng(0)
    losses, norms = random.normal(3.0, 0.1, 300), random.normal(1.0, 0.2, 300)
    losses[random.integers(0, 300, 20)] += 1.0
    norms[random.integers(0, 300, 20)] += 3.0
    losses[[1, 100]], norms[[50, 101]] = math.nan, math.inf
    losses, norms = losses.astype(np.float32), norms.astype(np.float32)
    guard = SkipStep(**options).start(CPU)
    ours = [
        guard.judge(torch.tensor(loss), torch.tensor(norm)).item() for loss, norm in zip(losses, norms, strict=True)
    ]
    sizes = {name: options[name] for name in ("window", "threshold", "min_history")}
    expected = spikes_by_brute_force(losses, norms, **sizes, **compared)
    assert ours == expected
    assert 10 < sum(ours) < 100
    assert guard.skipped.item() == sum(ours)


def test_skips_in_a_row_are_counted_from_the_last_step_that_was_taken():
    guard = SkipStep(max_in_a_row=2).start(CPU)
    counts = []
    for loss in (1.0, math.nan, math.nan, 1.0, math.inf):
        guard.judge(torch.tensor(loss), torch.tensor(1.0))
        counts.append((guard.in_a_row.item(), guard.problem() is not None))
    assert counts == [(0, False), (1, False), (2, True), (0, False), (1, False)]


def everything(state):
    """A copy of all that a step may change, by name."""
    tensors = {f"model/{name}": tensor for name, tensor in state.model.state_dict().items()}
    for name, parameter in state.trained().items():
        tensors |= {f"{name}/{key}": tensor for key, tensor in state.optimizer.state[parameter].items()}
    tensors |= {f"average/{name}": tensor for name, tensor in state.weight_average.tensors().items()}
    return {name: tensor.clone() for name, tensor in tensors.items()}


def poison(state, value):
    """Makes the next gradient of one weight `value`."""
    weight = state.model.decoder.block_0.mixer.query.weight
    handle = weight.register_hook(lambda gradient: torch.full_like(gradient, value))
    return handle.remove


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    return [
        name
        for name, tensor in ours.items()
        if tensor.contiguous().numpy().tobytes() != theirs[name].contiguous().numpy().tobytes()
    ] == []


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e6], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_skipped_step_changes_nothing_bitwise_and_later_steps_are_unaffected(tiny, optimizer, value):
    bindings = [f"Trainer.optimizer = @{optimizer}", SKIP, "SkipStep.min_history = 2", ROUTED, AVERAGED]
    bindings += ["SkipStep.loss = False", "DecoderBlock.dropout = 0.0", "SkipStep.threshold = 100.0"]
    ends = []
    for skips in ([], [3, 4, 6]):
        trainer = tiny(*bindings)
        dataset, state = trainer.open_data().training, trainer.start(CPU)
        batch = iter(range(1, 100))
        for step in range(1, 8 + len(skips)):
            if step not in skips:
                train_step(state, trainer.batches(dataset, next(batch)), trainer.precision, 1.0, CPU)
                continue
            before, undo = everything(state), poison(state, value)
            train_step(state, trainer.batches(dataset, 50), trainer.precision, 1.0, CPU)
            undo()
            assert same(everything(state), before)
        assert state.skip_step.skipped.item() == len(skips)
        assert state.step == 7 + len(skips)
        ends.append(everything(state))
    assert same(*ends)


def test_what_is_not_finite_in_the_very_first_step_is_skipped(tiny):
    trainer = tiny(SKIP, AVERAGED)
    dataset, state = trainer.open_data().training, trainer.start(CPU)
    before, undo = everything(state), poison(state, math.nan)
    train_step(state, trainer.batches(dataset, 1), trainer.precision, 1.0, CPU)
    undo()
    assert same(everything(state), before)
    assert state.first_nonfinite_step.item() == 0


def test_a_step_that_is_taken_is_the_one_without_skipping(tiny):
    ends = []
    for skipping in (SKIP, "Trainer.skip_step = None"):
        trainer = tiny(skipping, AVERAGED)
        dataset, state = trainer.open_data().training, trainer.start(CPU)
        for step in (1, 2, 3):
            torch.manual_seed(step)
            train_step(state, trainer.batches(dataset, step), trainer.precision, 1.0, CPU)
        ends.append(everything(state))
    assert same(*ends)


def broken_at(steps):
    """`train_step` with a gradient that is not finite in some steps."""
    take = loop.train_step

    def step(state, *rest):
        undo = poison(state, math.nan) if state.step + 1 in steps else lambda: None
        result = take(state, *rest)
        undo()
        return result

    return step


def test_a_run_continues_after_non_finite_values_and_reports_the_number_of_skipped_steps(tiny, run_in, monkeypatch):
    monkeypatch.setattr(loop, "train_step", broken_at({2, 5, 6}))
    folder, outcome, _ = run_in(tiny(SKIP))
    assert outcome.is_finished
    records = {record["step"]: record for record in folder.metrics()}
    assert [records[step]["skipped_steps"] for step in (1, 2, 4, 6, 12)] == [0, 1, 1, 3, 3]
    assert records[2]["grad_norm"] is None
    assert records[4]["grad_norm"] > 0.0
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line, parse_constant=pytest.fail) for line in lines)


def test_too_many_skipped_steps_in_a_row_end_the_run_where_it_is_next_logged(tiny, run_in, monkeypatch, tmp_path):
    monkeypatch.setattr(loop, "train_step", broken_at(set(range(5, 100))))
    trainer = tiny(SKIP, "SkipStep.max_in_a_row = 3", "Validation.every = None")
    with pytest.raises(RunFailure, match=r"the last 4 steps were skipped.*training stopped; checkpoints/step_4 is"):
        run_in(trainer)
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["step_4"]


def test_history_and_counts_are_all_that_is_to_be_kept():
    """Another guard with the same tensors decides the same from there on."""
    random = np.random.default_rng(0)
    values = torch.from_numpy(random.normal(3.0, 0.1, (200, 2)).astype(np.float32))
    values[::7] += 0.4
    settings = SkipStep(window=10, threshold=2.0, min_history=4)
    first, second = settings.start(CPU), settings.start(CPU)
    for loss, norm in values[:77]:
        first.judge(loss, norm)
    for name, tensor in second.tensors().items():
        tensor.copy_(first.tensors()[name])
    decisions = [[guard.judge(loss, norm).item() for loss, norm in values[77:]] for guard in (first, second)]
    assert decisions[0] == decisions[1]
    assert any(decisions[0])
    assert first.skipped == second.skipped


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("SkipStep.window = 1", "window must be at least 2"),
        ("SkipStep.threshold = 0.0", "threshold must be positive"),
        ("SkipStep.min_history = 129", r"min_history must be from 2 to window \(128\), not 129"),
        ("SkipStep.max_in_a_row = 0", "max_in_a_row must be positive"),
        ("SkipStep.loss = False\nSkipStep.grad_norm = False", "nothing would be compared"),
    ],
)
def test_values_out_of_range_are_refused_by_name(tiny, binding, message):
    with pytest.raises(ConfigError, match=message):
        tiny(SKIP, binding)


def test_an_optimizer_that_cannot_skip_is_refused(tiny, monkeypatch):
    from ml.training import AdamW

    monkeypatch.setattr(AdamW, "can_skip", False)
    for optimizer in ("AdamW", "Muon"):
        with pytest.raises(ConfigError, match=f"skip_step cannot be used with {optimizer}"):
            tiny(SKIP, f"Trainer.optimizer = @{optimizer}")
