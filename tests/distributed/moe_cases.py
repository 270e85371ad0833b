"""Small models with mixtures of experts, and their losses and gradients on one process and on several."""

from typing import NamedTuple

import numpy as np
import torch
from quick_trainers import quick_trainer
from torch import Tensor, nn

from ml.data import Batch
from ml.models import materialize

NUM_SEQUENCES, LENGTH, VOCABULARY, NUM_EXPERTS = 4, 16, 256, 4

TINY = [
    f"LanguageModel.vocab_size = {VOCABULARY}",
    "LanguageModel.hidden_size = 32",
    "decoder/Repeat.num_blocks = 2",
    "Attention.num_heads = 4",
    "Attention.num_kv_heads = 2",
    "DecoderBlock.mlp = @MixtureOfExperts",
    "GatedMLP.intermediate_size = 32",
    f"MixtureOfExperts.num_experts = {NUM_EXPERTS}",
    f"Trainer.batch_size = {NUM_SEQUENCES}",
    f"Trainer.sequence_length = {LENGTH}",
    "Trainer.num_steps = 10",
    "Trainer.optimizer = @AdamW",  # Muon takes no model of adapters alone
    "AdamW.learning_rate = 5e-3",
    "CosineSchedule.warmup_steps = 2",
]

SIGMOID = "MixtureOfExperts.router = @SigmoidRouter"
GROUPED = "MixtureOfExperts.grouped = True"

CASES = {
    "softmax router": ["SoftmaxRouter.z_loss = 0.01"],
    "sigmoid router": [SIGMOID],
    "grouped": [GROUPED],
    "grouped with biases": [GROUPED, SIGMOID, "Linear.bias = True"],
    "shared expert": ["MixtureOfExperts.shared_expert = @GatedMLP", "MixtureOfExperts.shared_expert_gate = True"],
    "other choices, weights on the input": [
        "SoftmaxRouter.balance_bias = True",
        "SoftmaxRouter.num_groups = 2",
        "SoftmaxRouter.bias = True",
        "SoftmaxRouter.bias_initialization = @normal",
        "MixtureOfExperts.weight_on_input = True",
        "GatedMLP.limit = 0.1",
        "GatedMLP.up_offset = 1.0",
    ],
    "one expert per token": ["MixtureOfExperts.experts_per_token = 1", "SoftmaxRouter.normalize = False"],
    "all experts": [f"MixtureOfExperts.experts_per_token = {NUM_EXPERTS}", GROUPED],
    "checkpointing": ["DecoderBlock.activation_checkpointing = @ActivationCheckpointing"],
    "checkpointing grouped": ["DecoderBlock.activation_checkpointing = @ActivationCheckpointing", GROUPED],
    "selective": ["DecoderBlock.activation_checkpointing = @SelectiveActivationCheckpointing", GROUPED],
    "dense first": ["block_0/DecoderBlock.mlp = @GatedMLP"],
    "shared blocks": ["Repeat.shared = True"],
    "adapters": [
        "Linear.apply_peft = @LoRA",
        "LoRA.B_initialization = @normal",  # zeros would leave A without a gradient
        "Parameter.lr_scale = 0.0",
        "adapter/Parameter.lr_scale = 1.0",
    ],
}


class Measured(NamedTuple):
    """Loss, gradients by name and loads by router."""

    loss: Tensor
    gradients: dict[str, Tensor]
    loads: dict[str, Tensor]


def trainer_of(bindings) -> object:
    return quick_trainer(bindings, common=TINY)


def model_of(bindings, parallelize=None) -> nn.Module:
    """Builds, divides and fills a model."""
    model = trainer_of(bindings).model
    if parallelize is not None:
        parallelize(model)
    return materialize(model).train()


def batch_of(step: int = 0) -> Batch:
    """A batch whose sequences have unequal numbers of targets."""
    generator = np.random.default_rng(step)
    tokens = generator.integers(0, VOCABULARY, (NUM_SEQUENCES, LENGTH))
    targets = np.roll(tokens, -1, 1).copy()
    for row in targets:
        row[: generator.integers(0, LENGTH - 2)] = -100
    return Batch.of(tokens, targets)


def measured(model: nn.Module, parts, num_targets: int) -> Measured:
    """Adds up loss, gradients and loads over parts of a batch."""
    names = {module: name for name, module in model.named_modules()}
    model.zero_grad()
    total, loads = torch.zeros(()), {}
    for part in parts:
        sums = model.loss(**part.inputs)
        (sums.total / num_targets).backward()
        total += sums.total.detach() / num_targets
        for router, load in sums.loads:
            loads[names[router]] = loads.get(names[router], 0.0) + load
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return Measured(total, gradients, loads)


def on_one_process(bindings, num_parts: int, change=None) -> Measured:
    """The reference: micro-batches of a rank's size, because a router's loss is that of each part."""
    model = model_of(bindings)
    if change is not None:
        change(model)
    batch = batch_of()
    return measured(model, batch.split(NUM_SEQUENCES // num_parts), batch.num_targets)


def farthest(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """The largest difference of an entry, relative to the largest entry of its tensor, and the name of the tensor."""
    differences = [
        ((actual[name] - expected[name]).abs().max() / expected[name].abs().max().clamp(min=1e-12), name)
        for name in actual
    ]
    value, name = max(differences)
    return value.item(), name
