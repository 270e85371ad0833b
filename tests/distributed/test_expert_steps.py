"""Training steps with experts divided over ranks against steps of one process."""

import warnings

import pytest
import torch
from moe_cases import CASES, NUM_SEQUENCES, SIGMOID, batch_of, trainer_of
from processes import run_ranks
from torch.distributed.tensor import DTensor

from ml.distributed import Layout, MeshSizes
from ml.training.errors import RunError
from ml.training.optimizers import apply_schedule
from ml.training.step import train_step

NUM_STEPS = 3

# Both sides round in float32 with another order of summation.
CLOSE = 1e-6
# After three steps, relative to the largest entry of a tensor.
CLOSE_STATE = 1e-5
# Adam divides by the root of its second moment, which would enlarge the rounding of small gradients.
DAMPED = "AdamW.epsilon = 1e-5"

CASES_OF_STEPS = {
    "sigmoid router": [SIGMOID, "SigmoidRouter.bias_update_rate = 0.01"],
    "checkpointing grouped": CASES["checkpointing grouped"],
    "shared blocks": CASES["shared blocks"],
    "adapters": CASES["adapters"],
}


def steps(bindings, layout, sizes):
    """Loss, norm and loads of each step, and the state after the last one."""
    num_micro_batches = sizes.pipeline  # of each data rank
    mesh = [] if sizes.pipeline == 1 else [f"Mesh.pipeline = {sizes.pipeline}"]
    trainer = trainer_of([DAMPED, *mesh, *bindings])
    state = trainer.start(torch.device("cpu"), layout)
    results = []
    for step in range(1, NUM_STEPS + 1):
        batch = batch_of(step)
        mine = batch.split(NUM_SEQUENCES // sizes.num_data_ranks // num_micro_batches)
        if layout is not None:
            mine = mine[layout.data_rank * num_micro_batches :][:num_micro_batches]
        apply_schedule(state.optimizer, trainer.schedule(step))
        result = train_step(state, mine, trainer.precision, 0.5, torch.device("cpu"), num_targets=batch.num_targets)
        results.append((result.loss, result.grad_norm, result.loads))
    return results, state.tensors()


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def differences(world, sizes, cases):
    warnings.filterwarnings("error", message=".*FSDPExperts.*returned a view tensor")
    layout = Layout.of(world, sizes)
    return {name: difference_of(layout, CASES_OF_STEPS[name]) for name in cases}


def difference_of(layout, bindings):
    of_one_process = steps(bindings, None, layout.sizes) if layout.world.is_first else None
    expected, reference = layout.world.share(of_one_process)
    actual, tensors = steps(bindings, layout, layout.sizes)
    for (loss, norm, loads), (expected_loss, expected_norm, expected_loads) in zip(actual, expected, strict=True):
        torch.testing.assert_close(loss, expected_loss, rtol=CLOSE, atol=0.0)
        torch.testing.assert_close(norm, expected_norm, rtol=CLOSE, atol=0.0)
        assert loads.keys() == expected_loads.keys()
        assert all(torch.equal(load, expected_loads[name]) for name, load in loads.items())
    for name, tensor in tensors.items():
        assert far_apart(whole(tensor), reference[name]) < CLOSE_STATE, name
        assert not name.endswith("balance_bias") or torch.equal(tensor, reference[name])
    return set(tensors), set(reference)


def far_apart(actual, expected):
    """The largest difference, relative to the largest entry."""
    if not actual.numel():
        return 0.0
    difference = (actual.double() - expected.double()).abs().max()
    return (difference / expected.double().abs().max().clamp(min=1e-30)).item()


LAYOUTS = {
    "data 2": (MeshSizes(data_shard=2), ["sigmoid router"]),
    "expert 2": (MeshSizes(data_shard=2, expert=2), ["checkpointing grouped", "adapters"]),
    "data 4, expert 2": (
        MeshSizes(data_shard=4, expert=2),
        ["sigmoid router", "checkpointing grouped", "shared blocks"],
    ),
    "replicate 2, expert 2": (MeshSizes(data_replicate=2, data_shard=2, expert=2), ["sigmoid router"]),
    "expert 2, tensor 2": (MeshSizes(data_shard=2, expert=2, tensor=2), ["sigmoid router", "checkpointing grouped"]),
    # A softmax router has a loss for each stretch, which a single process has not.
    "expert 2, context 2": (MeshSizes(data_shard=2, expert=2, context=2), ["sigmoid router"]),
    "expert 2, pipeline 2": (MeshSizes(data_shard=2, expert=2, pipeline=2), ["sigmoid router"]),
}


@pytest.mark.parametrize(("sizes", "cases"), LAYOUTS.values(), ids=LAYOUTS)
def test_steps_are_those_of_one_process(sizes, cases):
    found = run_ranks(sizes.world_size, differences, sizes, cases)
    for name in cases:
        names = [of_rank[name][0] for of_rank in found]
        assert set.union(*names) == found[0][name][1]
        if sizes.expert > 1:
            assert any(".expert_" in tensor for tensor in names[0] - names[sizes.tensor])


def test_a_mesh_that_does_not_fit_the_experts_is_refused_before_anything_is_built():
    trainer = trainer_of(["Mesh.expert = 3", "Trainer.batch_size = 6"])
    with pytest.raises(
        RunError, match=r"num_experts \(4\) is not divisible by Mesh.expert \(3\), which can be 1, 2 or 4"
    ):
        trainer.mesh_sizes(3)
    assert trainer_of(["Mesh.expert = 2"]).mesh_sizes(4).expert == 2
