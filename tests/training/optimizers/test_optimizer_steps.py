"""Steps of every optimizer against float64 equations and torch's optimizers, and their state."""

import io

import numpy as np
import pytest
import torch
from test_resume import stop_after, what_it_learned
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ml.config import ConfigError
from ml.training import SGD, Adafactor, AdamW, Lion, Muon
from ml.training.optimizers import ParameterGroup, apply_schedule
from ml.training.optimizers.muon import orthogonal
from ml.training.step import train_step

CPU = torch.device("cpu")
NUM_STEPS = 7
SETTINGS = [(1.0, None), (0.1, None), (1.0, 0.0)]  # of three groups: scale and decay
OPTIMIZERS = ["AdamW", "SGD", "Lion", "Muon", "Adafactor"]
MUON_AND_LION = "Muon\nMuon.others = @Lion"


def sgd(weight, gradients, rates, decay, momentum, nesterov):
    change = np.zeros_like(weight)
    for gradient, rate in zip(gradients, rates, strict=True):
        gradient = gradient + decay * weight
        change = momentum * change + gradient
        weight = weight - rate * (gradient + momentum * change if nesterov else change)
    return weight


def lion(weight, gradients, rates, decay, beta1, beta2):
    """Algorithm 2 of Chen et al., 2023."""
    mean = np.zeros_like(weight)
    for gradient, rate in zip(gradients, rates, strict=True):
        weight = weight - rate * (np.sign(beta1 * mean + (1 - beta1) * gradient) + decay * weight)
        mean = beta2 * mean + (1 - beta2) * gradient
    return weight


def by_torch(kind, weight, gradients, rates, decay, **options):
    parameter = nn.Parameter(torch.tensor(weight))
    optimizer = kind([parameter], weight_decay=decay, **options)
    for gradient, rate in zip(gradients, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    return parameter.detach().numpy()


def adafactor(weight, gradients, rates, decay, **options):
    return by_torch(torch.optim.Adafactor, weight, gradients, rates, decay, **options)


def muon(weight, gradients, rates, decay, **options):
    return by_torch(torch.optim.Muon, weight, gradients, rates, decay, **options)


CASES = {
    "SGD": (SGD(0.1, momentum=0.0, weight_decay=0.3), sgd, (0.0, False), (3, 5)),
    "SGD with momentum": (SGD(0.1, momentum=0.7, weight_decay=0.3), sgd, (0.7, False), (3, 5)),
    "SGD, Nesterov": (SGD(0.1, momentum=0.7, nesterov=True, weight_decay=0.3), sgd, (0.7, True), (3, 5)),
    "Lion": (Lion(0.1, betas=(0.8, 0.95), weight_decay=0.3), lion, (0.8, 0.95), (3, 5)),
    "Adafactor of a matrix": (Adafactor(0.1, weight_decay=0.3), adafactor, {}, (3, 5)),
    "Adafactor of a vector": (Adafactor(0.1, weight_decay=0.3), adafactor, {}, (5,)),
    "Adafactor of a convolution": (Adafactor(0.1, weight_decay=0.3), adafactor, {}, (4, 1, 3)),
    "Adafactor, other options": (
        Adafactor(0.3, -0.5, 1e-2, 3.0, 1.5, weight_decay=0.3),
        adafactor,
        {"beta2_decay": -0.5, "eps": (1e-2, 3.0), "d": 1.5},
        (3, 5),
    ),
}


def train_by_hand(recipe, starts, gradients, factors, names=("a.weight",) * 3):
    parameters = [nn.Parameter(torch.tensor(start)) for start in starts]
    groups = [ParameterGroup(*pair, [n], [p]) for pair, p, n in zip(SETTINGS, parameters, names, strict=True)]
    optimizer = recipe.create(groups)
    for factor, gradient in zip(factors, gradients, strict=True):
        apply_schedule(optimizer, factor)
        for parameter, value in zip(parameters, gradient, strict=True):
            parameter.grad = torch.from_numpy(value.copy())
        optimizer.step()
    return [parameter.detach().numpy() for parameter in parameters]


@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_of_the_equations_with_the_scale_and_the_decay_of_each_group(name):
    recipe, reference, options, shape = CASES[name]
    random = np.random.default_rng(0)
    starts, gradients = random.normal(size=(3, *shape)), random.normal(size=(NUM_STEPS, 3, *shape))
    factors = [(step + 1) / NUM_STEPS for step in range(NUM_STEPS)]
    ours = train_by_hand(recipe, starts, gradients, factors)
    for index, (scale, decay) in enumerate([(1.0, 0.3), (0.1, 0.3), (1.0, 0.0)]):
        rates = [recipe.learning_rate * factor * scale for factor in factors]
        arguments = {"args": options} if isinstance(options, tuple) else {"kwargs": options}
        expected = reference(
            starts[index], gradients[:, index], rates, decay, *arguments.get("args", ()), **arguments.get("kwargs", {})
        )
        # float64 on both sides; the order of operations differs.
        np.testing.assert_allclose(ours[index], expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [AdamW, SGD, Lion, Adafactor])
def test_in_every_type_a_step_is_that_of_float64_but_for_rounding(kind, dtype):
    random = torch.Generator().manual_seed(0)
    start, gradient = torch.randn((2, 7, 64), generator=random).to(dtype)
    ends = []
    for wide in (dtype, torch.float64):
        parameter = nn.Parameter(start.to(wide, copy=True))
        optimizer = kind(0.1, weight_decay=0.3).create([ParameterGroup(1.0, None, ["a.weight"], [parameter])])
        parameter.grad = gradient.to(wide)
        optimizer.step()
        ends.append(parameter.detach().double())
    # A few roundings each, of values up to 4.
    torch.testing.assert_close(*ends, rtol=0.0, atol=4 * 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        ({}, {"adjust_lr_fn": "match_rms_adamw"}),
        ({"update_rms": None}, {"adjust_lr_fn": "original"}),
        ({"nesterov": False, "momentum": 0.8}, {"nesterov": False, "momentum": 0.8, "adjust_lr_fn": "match_rms_adamw"}),
        ({"num_iterations": 2}, {"ns_steps": 2, "adjust_lr_fn": "match_rms_adamw"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_muon_steps_like_torch_s(options, theirs, shape):
    random = np.random.default_rng(0)
    starts = random.normal(size=(3, *shape)).astype(np.float32)
    gradients = random.normal(size=(NUM_STEPS, 3, *shape)).astype(np.float32)
    ours = train_by_hand(Muon(0.1, weight_decay=0.3, **options), starts, gradients, [1.0] * NUM_STEPS)
    for index, (scale, decay) in enumerate([(1.0, 0.3), (0.1, 0.3), (1.0, 0.0)]):
        expected = muon(starts[index], gradients[:, index], [0.1 * scale] * NUM_STEPS, decay, **theirs)
        moved = np.abs(expected - starts[index]).mean()
        # Both iterate in bfloat16 (2^-9); products of a batch are rounded elsewhere than single ones.
        np.testing.assert_allclose(ours[index], expected, atol=0.03 * moved)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 6, 20), (2, 20, 6)])
def test_the_iteration_keeps_singular_vectors_and_brings_singular_values_near_one(shape):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    inner = u.mT @ orthogonal(x, 5) @ vh.mT  # (n, r, r): the singular values, if the vectors are the same
    values = inner.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(inner, torch.diag_embed(values))
    assert values.min() > 0.3  # the least ones of a square matrix have not come up yet
    assert values.max() < 1.3


def test_a_muon_step_of_a_matrix_has_the_size_of_an_adamw_step():
    random = np.random.default_rng(0)
    start = np.zeros((3, 64, 128), np.float32)
    gradient = random.normal(size=(1, 3, 64, 128)).astype(np.float32)
    change = train_by_hand(Muon(1.0), start, gradient, [1.0])[0]
    assert np.sqrt(np.square(change).mean()) == pytest.approx(0.2, rel=0.15)  # singular values are 0.7 to 1.2


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_state_is_what_torch_would_make_of_it_and_is_there_before_the_first_step(tiny, optimizer):
    trainer = tiny(f"Trainer.optimizer = @{optimizer}")
    state = trainer.start(CPU)
    before = {name: {k: t.shape for k, t in state.optimizer.state[p].items()} for name, p in state.trained().items()}
    kept = [id(t) for p in state.trained().values() for t in state.optimizer.state[p].values()]
    train_step(state, trainer.batches(trainer.open_data().training, 1), trainer.precision, 1.0, CPU)
    after = {name: {k: t.shape for k, t in state.optimizer.state[p].items()} for name, p in state.trained().items()}
    assert after == before
    assert [id(t) for p in state.trained().values() for t in state.optimizer.state[p].values()] == kept
    assert all(before.values())
    assert set(state.optimizer.state) == set(state.trained().values())


@pytest.mark.parametrize(
    "optimizer", [*OPTIMIZERS, "SGD\nSGD.momentum = 0.0\nSGD.learning_rate = 1.0", "Muon\nMuon.others = @Lion"]
)
@pytest.mark.parametrize("precision", ["Float32", "PureBFloat16"])
def test_a_run_that_was_stopped_is_bitwise_the_run_that_was_not(tiny, run_in, monkeypatch, optimizer, precision):
    bindings = [f"Trainer.optimizer = @{optimizer}", f"Trainer.precision = @{precision}"]
    bindings += ["Trainer.num_steps = 7", "Trainer.validation = None"]
    undisturbed, _, _ = run_in(tiny(*bindings), "undisturbed")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        run_in(tiny(*bindings), "stopped")
    stopped, _, _ = run_in(tiny(*bindings), "stopped")
    assert what_it_learned(stopped, 7) == what_it_learned(undisturbed, 7)
    losses = [record["loss"] for record in stopped.metrics()]
    assert losses[-1] < losses[0]


class HostReads(TorchDispatchMode):
    """Counts operations that synchronize the host with the device."""

    count = 0

    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("skip_step", ["None", "@SkipStep"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_step_reads_a_value_back(tiny, optimizer, skip_step):
    average = "Trainer.weight_average = @ExponentialMovingAverage"
    trainer = tiny(f"Trainer.optimizer = @{optimizer}", f"Trainer.skip_step = {skip_step}", average)
    state, dataset = trainer.start(CPU), trainer.open_data().training
    batches = [trainer.batches(dataset, step) for step in (1, 2)]
    with HostReads() as reads:
        for of_step in batches:
            train_step(state, of_step, trainer.precision, 1.0, CPU)
    assert reads.count == 0
    with HostReads() as reads:
        state.model.head.weight.sum().item()
    assert reads.count == 1


def test_muon_trains_the_matrices_and_the_others_train_the_rest(tiny):
    trainer = tiny("Trainer.optimizer = @Muon", "Muon.others = @AdamW", "Linear.bias = True")
    state = trainer.start(CPU)
    keys = {name: set(state.optimizer.state[parameter]) for name, parameter in state.trained().items()}
    assert {name for name, kept in keys.items() if kept == {"momentum_buffer"}} == {
        f"decoder.block_{block}.{layer}.weight"
        for block in (0, 1)
        for layer in ("mixer.query", "mixer.key", "mixer.value", "mixer.output", "mlp.gate", "mlp.up", "mlp.down")
    }
    apply_schedule(state.optimizer, 0.5)
    # The learning rate of AdamW is 0.01 in this run, Muon's is its own.
    assert {group["lr"] for group in state.optimizer.param_groups} == {0.5 * 3e-4, 0.5 * 1e-2}
    assert {group["weight_decay"] for group in state.optimizer.param_groups} == {0.1, 0.0}


def test_patterns_say_what_is_a_matrix(tiny):
    trainer = tiny("Trainer.optimizer = @Muon", "Muon.matrices = ('*.query.*', 'head.*')", "Muon.exclude = ('*_1.*',)")
    assigned = trainer.optimizer.assign(trainer.groups())
    mine = [name for optimizer, group in assigned if optimizer is trainer.optimizer for name in group.names]
    assert mine == ["decoder.block_0.mixer.query.weight", "head.weight"]


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        (
            "Muon.exclude = ('*quary*',)",
            r"Trainer.optimizer does not fit the model: no trained parameter matches '\*quary\*' of Muon",
        ),
        ("Muon.exclude = ('*',)", "leave no matrix to train"),
        (
            "Linear.apply_peft = @LoRA\nParameter.lr_scale = 0.0\nadapter/Parameter.lr_scale = 1.0",
            "Muon trains no adapters, and all other weights are frozen: set Trainer.optimizer = @AdamW",
        ),
        ("Muon.momentum = 1.0", r"momentum must be in \[0, 1\)"),
        ("Muon.num_iterations = 0", "num_iterations must be from 1 to 100, not 0"),
        ("Muon.update_rms = 0.0", "update_rms must be positive"),
    ],
)
def test_a_muon_that_does_not_fit_is_refused(tiny, binding, message):
    with pytest.raises(ConfigError, match=message):
        tiny("Trainer.optimizer = @Muon", binding)


def test_the_state_of_two_optimizers_is_saved_and_loaded_as_of_one(tiny):
    trainers = [tiny("Trainer.optimizer = @Muon") for _ in range(2)]
    dataset = trainers[0].open_data().training
    first, second = (trainer.start(CPU) for trainer in trainers)
    file = io.BytesIO()
    train_step(first, trainers[0].batches(dataset, 1), trainers[0].precision, 1.0, CPU)
    torch.save([first.model.state_dict(), first.optimizer.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file)
    second.model.load_state_dict(weights)
    second.optimizer.load_state_dict(state)
    for trained, trainer in zip((first, second), trainers, strict=True):
        torch.manual_seed(0)
        train_step(trained, trainer.batches(dataset, 2), trainer.precision, 1.0, CPU)
    assert all(map(torch.equal, first.model.parameters(), second.model.parameters()))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (SGD, {"momentum": 1.0}),
        (SGD, {"nesterov": True, "momentum": 0.0}),
        (Lion, {"betas": (0.9, 1.0)}),
        (Adafactor, {"beta2_decay": 0.0}),
        (Adafactor, {"epsilon": 0.0}),
        (Adafactor, {"minimum_scale": 0.0}),
        (Adafactor, {"clipping_threshold": 0.5}),
        *((kind, {"learning_rate": 0.0}) for kind in (AdamW, SGD, Lion, Muon, Adafactor)),
        *((kind, {"weight_decay": -0.1}) for kind in (AdamW, SGD, Lion, Muon, Adafactor)),
    ],
)
def test_values_out_of_range_are_refused_by_name(kind, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        kind(**options)
