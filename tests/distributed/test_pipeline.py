"""Pipelines against one process: loss, every gradient, and the weights after three steps."""

import copy
import functools

import torch
from pipeline_cases import (
    FURTHER_TOKENS,
    LEARNED_POSITIONS,
    MIXTURE,
    NESTED,
    PATTERN,
    SIGMOID,
    TIED,
    micro_batches,
    require_equal,
    trainer_of,
)
from processes import run_ranks
from torch.distributed.device_mesh import init_device_mesh

from ml.distributed.pipeline.cut import cut
from ml.distributed.pipeline.pipeline import Pipeline
from ml.distributed.schedules import (
    GPipe,
    InterleavedOneForwardOneBackward,
    InterleavedZeroBubble,
    OneForwardOneBackward,
    ZeroBubbleV,
)
from ml.layers import Balanced
from ml.models import materialize, named_parameters_with_scales
from ml.training.optimizers import group_parameters

CASES = {
    "gpipe": (GPipe(), []),
    "1f1b": (OneForwardOneBackward(), []),
    "interleaved": (InterleavedOneForwardOneBackward(), []),
    "zero bubble": (InterleavedZeroBubble(), []),
    "zero bubble v": (ZeroBubbleV(), []),
    "softmax router": (OneForwardOneBackward(), MIXTURE),
    "softmax router, zero bubble": (InterleavedZeroBubble(), MIXTURE),
    "sigmoid router": (OneForwardOneBackward(), SIGMOID),
    "tied": (
        OneForwardOneBackward(),
        [*TIED, *LEARNED_POSITIONS],
    ),
    "tied, zero bubble v": (ZeroBubbleV(), TIED),
    "pattern": (OneForwardOneBackward(), PATTERN),
    "chain": (GPipe(head_as_blocks=2), NESTED),
    "recomputed": (
        InterleavedZeroBubble(),
        [*MIXTURE, "DecoderBlock.activation_checkpointing = @ActivationCheckpointing"],
    ),
    "further tokens": (
        InterleavedOneForwardOneBackward(),
        [*FURTHER_TOKENS, *TIED],
    ),
    "bfloat16": (InterleavedZeroBubble(), ["Trainer.precision = @MixedBFloat16"]),
    "frozen": (
        OneForwardOneBackward(),
        ["embeddings/Embeddings.lr_scale = 0.0", "block_0/DecoderBlock.lr_scale = 0.0"],
    ),
}


class OneProcess:
    """Trains a model in one process."""

    def __init__(self, trainer):
        self.model = materialize(copy.deepcopy(trainer.model), "cpu", trainer.seed).train()
        self.autocast = functools.partial(trainer.precision.autocast, torch.device("cpu"))
        self.optimizer = trainer.optimizer.create(group_parameters(named_parameters_with_scales(self.model)))

    def step(self, step):
        batches, num_targets = micro_batches(step)
        measured = []
        for batch in batches:
            with self.autocast():
                sums = self.model.loss(**batch.inputs)
            (sums.total / num_targets).backward()
            measured.append(sums)
        return summary(measured, self.model)

    @torch.no_grad()
    def validation_loss(self):
        self.model.eval()
        with self.autocast():
            sums = [self.model.loss(**batch.inputs) for batch in micro_batches(100)[0]]
        self.model.train()
        return {"nats": sum(s.cross_entropy for s in sums).double(), "targets": sum(s.num_tokens for s in sums)}

    def named_gradients(self):
        return {name: parameter.grad for name, parameter in self.model.named_parameters()}

    def three_steps(self):
        """The sums, gradients and validation loss of each step, and the weights before the first and after the last."""
        initial = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        steps = []
        for step in range(3):
            sums, gradients = self.step(step), self.named_gradients()
            update(self, sums)
            steps.append((sums, gradients, self.validation_loss()))
        return initial, steps, self.model.state_dict()


class OneRank(OneProcess):
    """The same in one rank of a pipeline."""

    def __init__(self, trainer, schedule, axis):
        model = copy.deepcopy(trainer.model)
        stages = cut(model, schedule, axis.get_local_rank(), axis.size())
        self.model = materialize(model, "cpu", trainer.seed).train()
        self.pipeline = Pipeline(model, stages, schedule, axis)
        self.autocast = functools.partial(trainer.precision.autocast, torch.device("cpu"))
        self.optimizer = trainer.optimizer.create(group_parameters(named_parameters_with_scales(model)))

    def step(self, step):
        batches, num_targets = micro_batches(step)
        inputs = [batch.inputs for batch in batches]
        return summary(self.pipeline.gradients(inputs, num_targets, self.autocast), self.model)


def summary(measured, model):
    """Sums over micro-batches by name: the cross entropy, the parts, and the load of each router."""
    names = {module: name for name, module in model.named_modules()}
    sums = {}
    for micro_batch in measured:
        loads = {names[router]: load for router, load in micro_batch.loads}
        for name, value in {"loss": micro_batch.cross_entropy, **micro_batch.parts, **loads}.items():
            sums[name] = sums.get(name, 0.0) + value.detach().double()
    return sums


def update(run, sums):
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    for name, module in run.model.named_modules():
        if isinstance(module, Balanced):
            module.balance(sums[name].float())


def together(world, sums):
    """Sums over the ranks."""
    total = {}
    for part in world.gather(sums):
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


def require_one_process(world, name):
    schedule, bindings = CASES[name]
    trainer = trainer_of(bindings)
    initial, steps, last = world.first(lambda: OneProcess(trainer).three_steps())
    part = OneRank(trainer, schedule, init_device_mesh("cpu", (world.size,)))
    for key, weight in part.model.named_parameters():
        assert torch.equal(weight, initial[key]), f"initial {key}"
    for step, (wanted, gradients, wanted_validation) in enumerate(steps):
        mine = part.step(step)
        found = together(world, mine)
        assert found.keys() == wanted.keys()
        for key in found:
            require_equal(found[key], wanted[key], f"{name}, step {step}: {key}", 1e-6)
        for key, gradient in part.named_gradients().items():
            if gradients[key] is None:
                assert gradient is None, key
            else:
                # Sums over micro-batches and over the two uses of a tied weight are in another order.
                require_equal(gradient, gradients[key], f"{name}, step {step}: gradient of {key}", 1e-5)
        update(part, mine)
        found = together(world, part.validation_loss())
        assert found["targets"] == wanted_validation["targets"]
        require_equal(found["nats"], wanted_validation["nats"], f"{name}: validation loss", 1e-6)
    return {key: tensor.clone() for key, tensor in part.model.state_dict().items()}, last


def trains(world, names):
    return {name: require_one_process(world, name) for name in names}


def test_every_schedule_and_model_trains_as_one_process():
    ranks = run_ranks(2, trains, list(CASES), timeout=480.0)
    for name in CASES:
        whole = ranks[0][name][1]
        held = [ranks[rank][name][0] for rank in range(2)]
        assert held[0].keys() | held[1].keys() == whole.keys(), name
        tied = {"embeddings.token.weight"} if "tied" in name or name == "further tokens" else set()
        assert (held[0].keys() & held[1].keys()) - {"head.weight"} <= tied, name
        for key in held[0].keys() & held[1].keys():
            assert torch.equal(held[0][key], held[1][key]), f"{name}: {key} differs between the stages"
        for part in held:
            for key, tensor in part.items():
                require_equal(tensor, whole[key], f"{name}: {key} after 3 steps", 1e-5)
