"""Mixtures of experts on the tensor axis compute what one process does."""

from functools import partial

import moe_cases
import torch
import torch.distributed as dist
from laid_out import whole
from processes import run_ranks
from tensor_models import GRADIENT_TOLERANCE, LOSS_TOLERANCE, assert_same_as_one_process, batch_of, small_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from ml.distributed.expert_dispatch import expert_parallel
from ml.distributed.initialization import materialize_shards
from ml.distributed.tensor import tensor_misfits, tensor_parallel
from ml.layers import GatedMLP, MixtureOfExperts

MIXTURE = [
    "DecoderBlock.mlp = @MixtureOfExperts",
    "MixtureOfExperts.num_experts = 4",
    "SoftmaxRouter.z_loss = 0.01",
]
SIGMOID = ["DecoderBlock.mlp = @MixtureOfExperts", "MixtureOfExperts.router = @SigmoidRouter"]
GROUPED = "MixtureOfExperts.grouped = True"
BIASES = ["Linear.bias = True", "Linear.bias_initialization = @normal"]
CASES = {
    "softmax router": [*MIXTURE, *BIASES],
    "sigmoid router, uneven width": [*SIGMOID, "GatedMLP.intermediate_size = 37", *BIASES],
    "grouped": [*MIXTURE, GROUPED, *BIASES],
    "shared expert": [
        *MIXTURE,
        "MixtureOfExperts.shared_expert = @GatedMLP",
        "MixtureOfExperts.shared_expert_gate = True",
    ],
    "checkpointing": [*MIXTURE, GROUPED, "DecoderBlock.activation_checkpointing = @ActivationCheckpointing"],
    "adapters": [*MIXTURE, "Linear.apply_peft = @LoRA", "LoRA.B_initialization = @normal"],
}


def every_case(world):
    for name, bindings in CASES.items():
        model, batch = small_model(bindings), batch_of()
        for sequence in (False, True):
            try:
                expected, many = assert_same_as_one_process(world, model, batch, sequence=sequence)
            except Exception as error:
                raise AssertionError(f"{name}, sequence={sequence}") from error
            assert_same_loads(expected.loads, many)


def assert_same_loads(expected, many):
    """Each rank counts the tokens of the whole sequence."""
    found = many.loss(**batch_of().inputs).loads
    assert expected
    assert len(found) == len(expected)
    for (_, load), expected_load in zip(found, expected, strict=True):
        assert torch.equal(load, expected_load)


def test_loss_gradients_and_loads_on_two_ranks():
    run_ranks(2, every_case)


def over_both_axes(world, cases):
    root = init_device_mesh("cpu", (2, 2), mesh_dim_names=("expert", "tensor"))
    group, rank = root["expert"].get_group(), root["expert"].get_local_rank()
    for name in cases:
        bindings = moe_cases.CASES[name]
        expected = world.share(moe_cases.on_one_process(bindings, 2) if world.is_first else None)
        model = moe_cases.trainer_of(bindings).model
        expert_parallel(model, root["expert"])
        tensor_parallel(model, root["tensor"], sequence=True)
        model = materialize_shards(model, world, "cpu", 0).train()
        batch = moe_cases.batch_of()
        part = batch.split(moe_cases.NUM_SEQUENCES // 2)[rank]
        actual = moe_cases.measured(model, [part], batch.num_targets)
        torch.testing.assert_close(summed(actual.loss, group), expected.loss, rtol=LOSS_TOLERANCE, atol=0.0)
        for router, load in expected.loads.items():
            assert torch.equal(summed(actual.loads[router], group), load), router
        for key, gradient in actual.gradients.items():
            if ".expert_" not in key:
                summed(gradient.to_local(), group)
        gradients = {key: whole(gradient) for key, gradient in actual.gradients.items()}
        difference, where = moe_cases.farthest(gradients, expected.gradients)
        assert difference < GRADIENT_TOLERANCE, (name, where)


def summed(tensor, group):
    dist.all_reduce(tensor, group=group)
    return tensor


def test_experts_that_are_divided_and_dispatched_on_four_ranks():
    run_ranks(4, over_both_axes, ("shared expert", "checkpointing grouped", "adapters"))


class Doubled(nn.Module):
    """An expert without a rule."""

    def __init__(self, hidden_size):
        super().__init__()
        self.inner = GatedMLP(hidden_size)

    def forward(self, x, context=None):
        return 2 * self.inner(x)


def test_experts_that_cannot_be_divided_are_refused():
    mixture = MixtureOfExperts(16, expert=Doubled)
    (problem,) = tensor_misfits(mixture, 2)
    assert problem == "Experts.expert_0 (Doubled) has no rule for Mesh.tensor within Experts (in experts)"
    narrow = MixtureOfExperts(16, expert=partial(GatedMLP, intermediate_size=24), grouped=True)
    (problem,) = tensor_misfits(narrow, 2)
    assert "multiples of 8, and GatedMLP.intermediate_size (24) is divided over Mesh.tensor (2)" in problem
    assert tensor_misfits(narrow, 3) == []
    assert tensor_misfits(MixtureOfExperts(16, expert=partial(GatedMLP, intermediate_size=24)), 2) == []
