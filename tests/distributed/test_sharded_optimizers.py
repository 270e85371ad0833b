"""Optimizers on shards: the steps of one process."""

import copy
from functools import partial

import pytest
import torch
from laid_out import DispatchCount, lay_out, model_of, whole
from processes import run_ranks
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

from ml.distributed import World
from ml.distributed.initialization import materialize_shards
from ml.distributed.shards import empty_like, local, shard_of
from ml.models import named_parameters_with_scales
from ml.training.optimizers import SGD, Adafactor, AdamW, Lion, Muon, Optimizer, apply_schedule, group_parameters
from ml.training.optimizers.state_formats import Blockwise8BitState


class Custom(Optimizer):
    """An optimizer that knows nothing of shards."""

    def initial_state(self, parameter):
        return {"mean": torch.zeros_like(parameter)}

    def algorithm(self, settings):
        return CustomAlgorithm(settings, {})


class CustomAlgorithm(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in (one for one in group["params"] if one.grad is not None):
                mean = self.state[weight]["mean"].lerp_(weight.grad, 0.1)
                weight.sub_(mean.sign() * mean.norm(), alpha=group["lr"])


OPTIMIZERS = {
    "AdamW": lambda: AdamW(weight_decay=0.1),
    "Lion": lambda: Lion(weight_decay=0.1),
    "SGD": lambda: SGD(momentum=0.9, weight_decay=0.1),
    "Muon": lambda: Muon(weight_decay=0.1),
    "Adafactor": lambda: Adafactor(weight_decay=0.1),
    "SGD, 8 bits": lambda: SGD(momentum=0.9, state_format=partial(Blockwise8BitState, 8)),
    "Custom": lambda: Custom(learning_rate=1e-3, weight_decay=0.1),
}
# Elementwise steps differ in the last bit: an entry may be in the vectorized part of a loop or after it. Adafactor sums
# squares in another order. Muon multiplies batches of another size in bfloat16: 2^-8 of an update of about 1e-3.
TOLERANCE = {"AdamW": 1e-7, "Lion": 1e-7, "SGD": 1e-7, "Muon": 3e-5, "Adafactor": 1e-6, "Custom": 1e-7}
_UNUSED = "decoder.block_0.mlp.expert_0.gate.weight"


class Run:
    """A model with given gradients, whole or laid out over ranks."""

    def __init__(self, optimizer, model, world=None, layout=None):
        self.model = copy.deepcopy(model)
        if layout is not None:
            lay_out(self.model, world, layout)
        materialize_shards(self.model, World() if layout is None else world, "cpu", seed=1)
        self.groups = group_parameters(named_parameters_with_scales(self.model))
        self.optimizer = OPTIMIZERS[optimizer]().create(self.groups)

    def give_gradients(self, step):
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and name != _UNUSED:
                generator = torch.Generator().manual_seed(sum(name.encode()) * 100 + step)
                gradient = torch.randn(parameter.shape, generator=generator) * 0.1
                parameter.grad = empty_like(parameter, "cpu")
                local(parameter.grad).copy_(shard_of(parameter).of(gradient))

    def step(self, step, found_inf=None):
        apply_schedule(self.optimizer, 1.0 / step)
        vars(self.optimizer)["found_inf"] = found_inf
        self.give_gradients(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def tensors(self):
        weights = {name: whole(one.detach()) for name, one in self.model.named_parameters()}
        state = {
            f"{name}/{key}": whole(value)
            for group in self.groups
            for name, parameter in zip(group.names, group.parameters, strict=True)
            for key, value in self.optimizer.state[parameter].items()
        }
        return weights | state


def of_one_process(model):
    """Weights and state of each optimizer after three steps."""
    runs = {optimizer: Run(optimizer, model) for optimizer in OPTIMIZERS}
    for run in runs.values():
        for step in (1, 2, 3):
            run.step(step)
    return {optimizer: run.tensors() for optimizer, run in runs.items()}


def three_steps(world, layouts):
    model = model_of()
    for optimizer, expected in world.first(lambda: of_one_process(model)).items():
        for layout in layouts:
            run = Run(optimizer, model, world, layout)
            for step in (1, 2, 3):
                run.step(step)
            found = run.tensors()
            if layout not in ("experts", "stages"):
                assert found.keys() == expected.keys()
            for name, tensor in found.items():
                difference = (tensor.double() - expected[name].double()).abs().max().item()
                where = f"{name} of {optimizer} on {layout}"
                limit = TOLERANCE[optimizer.partition(",")[0]] * max(1.0, expected[name].abs().max().item())
                assert difference <= limit, f"{where} differs by {difference}"
    return True


@pytest.mark.parametrize(
    ("num_ranks", "layouts"),
    [(2, ["fsdp", "tensor", "experts"]), (3, ["fsdp"]), (4, ["hsdp", "fsdp x tensor"])],
    ids=["2 ranks", "3 ranks", "4 ranks"],
)
def test_three_steps_are_those_of_one_process(num_ranks, layouts):
    assert all(run_ranks(num_ranks, three_steps, layouts))


def skipped_steps(world):
    model = model_of()
    for optimizer in sorted(OPTIMIZERS.keys() - {"Custom"}):
        run = Run(optimizer, model, world, "fsdp")
        run.step(1, found_inf=torch.tensor(0.0))
        before = {name: tensor.clone() for name, tensor in run.tensors().items()}
        run.step(2, found_inf=torch.tensor(1.0))
        for name, tensor in run.tensors().items():
            assert torch.equal(tensor, before[name]), f"{name} of {optimizer}"
    return True


def overhead(world):
    """Counts operations on DTensors and collectives of a step, and the shapes of the matrices of Muon."""
    found, model = {}, model_of()
    for optimizer in OPTIMIZERS:
        run = Run(optimizer, model, world, "fsdp")
        run.give_gradients(1)
        with CommDebugMode() as collectives, DispatchCount() as operations:
            run.optimizer.step()
        shapes = {one.shape for one in run.optimizer.state if "momentum_buffer" in run.optimizer.state[one]}
        found[optimizer] = operations.number, collectives.get_total_counts(), len(shapes)
    return found


def state_of_shards(world):
    """The state is distributed as the parameter is, so that checkpoints can be read on another mesh."""
    model = model_of()
    for optimizer in OPTIMIZERS:
        run = Run(optimizer, model, world, "fsdp")
        for parameter, state in run.optimizer.state.items():
            for key, tensor in state.items():
                if key != "step":
                    assert isinstance(tensor, DTensor)
                    assert tensor.device_mesh == parameter.device_mesh
                    assert tensor.shape == parameter.shape or key in ("row", "column") or key.endswith("_scale")
    return True


def checks_on_two_ranks(world):
    return skipped_steps(world), state_of_shards(world), overhead(world)


@pytest.fixture(scope="module")
def two_ranks():
    return run_ranks(2, checks_on_two_ranks)


def test_a_skipped_step_changes_no_shard(two_ranks):
    assert all(skipped for skipped, _, _ in two_ranks)


def test_state_is_distributed_as_the_weights(two_ranks):
    assert all(distributed for _, distributed, _ in two_ranks)


def test_muon_takes_two_collectives_a_shape_and_elementwise_steps_none(two_ranks):
    for _, _, found in two_ranks:
        for optimizer in ("AdamW", "Lion", "SGD", "SGD, 8 bits"):
            assert found[optimizer][:2] == (0, 0), optimizer
        operations, collectives, num_shapes = found["Muon"]
        assert operations == 0
        assert collectives == 2 * num_shapes
        assert found["Adafactor"][0] == 0
