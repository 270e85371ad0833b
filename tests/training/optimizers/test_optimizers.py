"""AdamW against its equations, and the assignment of parameters to groups."""

import numpy as np
import pytest
import torch
from saved import saved_tensors, trained_model
from torch import nn

from ml.config import ConfigError
from ml.models import named_parameters_with_scales
from ml.training import AdamW
from ml.training.optimizers import ParameterGroup, apply_schedule, group_parameters


def adamw_by_hand(weight, gradients, rates, beta1, beta2, epsilon, decay):
    """Algorithm 2 of Loshchilov and Hutter, 2019, in float64."""
    mean = np.zeros_like(weight)
    square = np.zeros_like(weight)
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        mean = beta1 * mean + (1 - beta1) * gradient
        square = beta2 * square + (1 - beta2) * gradient**2
        corrected = (mean / (1 - beta1**step)) / (np.sqrt(square / (1 - beta2**step)) + epsilon)
        weight = weight - rate * (corrected + decay * weight)
    return weight


def test_a_step_is_the_paper_s_with_the_scale_and_the_decay_of_each_group():
    random = np.random.default_rng(0)
    starts, gradients = random.normal(size=(3, 5)), random.normal(size=(7, 3, 5))
    rates = [1e-2 * (step + 1) / 7 for step in range(7)]
    parameters = [nn.Parameter(torch.tensor(start)) for start in starts]
    settings = [(1.0, None), (0.1, None), (1.0, 0.0)]
    groups = [ParameterGroup(*pair, [""], [p]) for pair, p in zip(settings, parameters, strict=True)]
    recipe = AdamW(learning_rate=1e-2, betas=(0.8, 0.9), epsilon=1e-6, weight_decay=0.3)
    optimizer = recipe.create(groups)
    for rate, gradient in zip(rates, gradients, strict=True):
        apply_schedule(optimizer, rate / 1e-2)
        for parameter, value in zip(parameters, gradient, strict=True):
            parameter.grad = torch.from_numpy(value)
        optimizer.step()
    for index, (scale, decay) in enumerate([(1.0, 0.3), (0.1, 0.3), (1.0, 0.0)]):
        scaled = [rate * scale for rate in rates]
        expected = adamw_by_hand(starts[index], gradients[:, index], scaled, 0.8, 0.9, 1e-6, decay)
        # float64 on both sides; the order of operations differs.
        np.testing.assert_allclose(parameters[index].detach().numpy(), expected, rtol=1e-12)


def test_the_fused_kernel_is_used():
    group = ParameterGroup(1.0, None, ["w"], [nn.Parameter(torch.zeros(2))])
    assert AdamW().create([group]).defaults["fused"]


def test_norms_and_biases_do_not_decay_and_weights_do(tiny):
    state = tiny("Linear.bias = True").start(torch.device("cpu"))
    decays = {
        name: setting["weight_decay"]
        for group, setting in zip(state.groups, state.optimizer.param_groups, strict=True)
        for name in group.names
    }
    assert decays.keys() == dict(state.model.named_parameters()).keys()
    for name, decay in decays.items():
        assert decay == (0.0 if "norm" in name or name.endswith("bias") else 0.1), name


def test_parameters_are_grouped_by_scale_and_decay(tiny):
    trainer = tiny("block_1/DecoderBlock.lr_scale = 0.5", "query/weight/Parameter.weight_decay = 0.3")
    groups = {(group.lr_scale, group.weight_decay): group.names for group in trainer.start(torch.device("cpu")).groups}
    assert groups.keys() == {(1.0, None), (1.0, 0.0), (1.0, 0.3), (0.5, None), (0.5, 0.0), (0.5, 0.3)}
    assert groups[0.5, 0.3] == ["decoder.block_1.mixer.query.weight"]


def test_a_frozen_block_has_no_gradient_no_optimizer_state_and_keeps_its_weights(tiny, run_in):
    trainer = tiny("block_0/DecoderBlock.lr_scale = 0.0", "Trainer.num_steps = 3")
    before = {
        scaled.name: scaled.parameter.detach().clone()
        for scaled in named_parameters_with_scales(
            tiny("block_0/DecoderBlock.lr_scale = 0.0").start(torch.device("cpu")).model
        )
    }
    folder, _, _ = run_in(trainer)
    after = dict(trained_model(trainer, folder).named_parameters())
    unchanged = {name for name, weight in before.items() if torch.equal(weight, after[name])}
    assert unchanged == {name for name in before if ".block_0." in name}
    assert all(after[name].grad is None and not after[name].requires_grad for name in unchanged)
    saved = saved_tensors(folder.checkpoints / "step_3")
    trained = {name.rpartition("/")[0] for name in saved if name.startswith("optimizer/")}
    assert trained == {f"optimizer/{name}" for name in before.keys() - unchanged}


def test_a_model_that_is_frozen_as_a_whole_is_refused(tiny):
    with pytest.raises(ConfigError, match="nothing to train"):
        tiny("LanguageModel.lr_scale = 0.0")


def test_a_group_is_made_for_each_pair_in_the_order_of_the_parameters():
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(4)]
    rows = [("a", 1.0, None), ("b", 0.0, None), ("c", 2.0, None), ("d", 1.0, None)]
    groups = group_parameters((row[0], p, row[1], row[2]) for row, p in zip(rows, parameters, strict=True))
    assert [group.names for group in groups] == [["a", "d"], ["c"]]
    assert [parameter.requires_grad for parameter in parameters] == [True, False, True, True]


@pytest.mark.parametrize(
    "options", [{"learning_rate": 0.0}, {"betas": (0.9, 1.0)}, {"epsilon": 0.0}, {"weight_decay": -0.1}]
)
def test_values_out_of_range_are_refused_by_name(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        AdamW(**options)
