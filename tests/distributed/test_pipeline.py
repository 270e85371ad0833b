"""Pipelines against one process: loss, every gradient, and the weights after three steps."""

import copy
import functools

import numpy as np
import torch
from processes import run_ranks
from quick_trainers import quick_trainer
from torch.distributed.device_mesh import init_device_mesh

from ml.data import Batch
from ml.distributed.initialization import materialize_shards
from ml.distributed.pipeline.cut import cut
from ml.distributed.pipeline.pipeline import Pipeline
from ml.distributed.pipeline.schedules import (
    GPipe,
    InterleavedOneForwardOneBackward,
    InterleavedZeroBubble,
    OneForwardOneBackward,
    ZeroBubbleV,
)
from ml.distributed.tensor import tensor_parallel
from ml.layers import Balanced
from ml.models import materialize, named_parameters_with_scales
from ml.targets import IGNORED
from ml.training.optimizers import group_parameters

VOCABULARY, LENGTH, NUM_SEQUENCES, MICRO_BATCH = 256, 16, 8, 2
TINY = [
    f"LanguageModel.vocab_size = {VOCABULARY}",
    "LanguageModel.hidden_size = 32",
    "decoder/Repeat.num_blocks = 4",
    "Attention.num_heads = 4",
    "Attention.num_kv_heads = 2",
    "GatedMLP.intermediate_size = 64",
    f"Trainer.batch_size = {NUM_SEQUENCES}",
    f"Trainer.sequence_length = {LENGTH}",
    "Trainer.optimizer = @SGD",  # AdamW divides rounding errors of small gradients by their size
    "SGD.learning_rate = 0.1",
    "scaled_normal.std = 0.2",  # large enough that every part of the model matters
    "normal.std = 0.2",
]
MIXTURE = ["DecoderBlock.mlp = @MixtureOfExperts", "MixtureOfExperts.num_experts = 4"]
PATTERN = [
    "LanguageModel.decoder = @Pattern",
    "Pattern.blocks = {'ssm': @DecoderBlock, 'attention': @DecoderBlock}",
    "Pattern.pattern = ['ssm', 'attention']",
    "Pattern.num_blocks = 4",
    "ssm/DecoderBlock.mixer = @Mamba2",
    "Mamba2.head_size = 8",
    "Mamba2.state_size = 8",
]
NESTED = [
    "LanguageModel.decoder = @Chain",
    "Chain.sequences = {'dense': @Repeat, 'sparse': @Repeat}",
    "sparse/DecoderBlock.mlp = @MixtureOfExperts",
    "dense/Repeat.num_blocks = 1",
    "sparse/Repeat.num_blocks = 3",
]
CASES = {
    "gpipe": (GPipe(), []),
    "1f1b": (OneForwardOneBackward(), []),
    "interleaved": (InterleavedOneForwardOneBackward(), []),
    "zero bubble": (InterleavedZeroBubble(), []),
    "zero bubble v": (ZeroBubbleV(), []),
    "softmax router": (OneForwardOneBackward(), MIXTURE),
    "softmax router, zero bubble": (InterleavedZeroBubble(), MIXTURE),
    "sigmoid router": (OneForwardOneBackward(), [*MIXTURE, "MixtureOfExperts.router = @SigmoidRouter"]),
    "tied": (
        OneForwardOneBackward(),
        ["LanguageModel.tie_word_embeddings = True", "Embeddings.position = @PositionEmbedding"],
    ),
    "tied, zero bubble v": (ZeroBubbleV(), ["LanguageModel.tie_word_embeddings = True"]),
    "pattern": (OneForwardOneBackward(), PATTERN),
    "chain": (GPipe(head_as_blocks=2), NESTED),
    "recomputed": (
        InterleavedZeroBubble(),
        [*MIXTURE, "DecoderBlock.activation_checkpointing = @ActivationCheckpointing"],
    ),
    "further tokens": (
        InterleavedOneForwardOneBackward(),
        ["LanguageModel.multi_token = @MultiTokenPrediction", "LanguageModel.tie_word_embeddings = True"],
    ),
    "bfloat16": (InterleavedZeroBubble(), ["Trainer.precision = @MixedBFloat16"]),
    "frozen": (
        OneForwardOneBackward(),
        ["embeddings/Embeddings.lr_scale = 0.0", "block_0/DecoderBlock.lr_scale = 0.0"],
    ),
}


def trainer_of(bindings):
    without_repeat = any("LanguageModel.decoder" in binding for binding in bindings)
    tiny = [binding for binding in TINY if not (without_repeat and "Repeat" in binding)]
    return quick_trainer([*tiny, *bindings])


def micro_batches(step, sequences=slice(None)):
    """Micro-batches with documents and with unequal numbers of targets."""
    random = np.random.default_rng(step)
    tokens = random.integers(0, VOCABULARY, (NUM_SEQUENCES, LENGTH))
    targets = np.roll(tokens, -1, axis=1)
    for row in targets:
        row[: random.integers(0, LENGTH - 2)] = IGNORED
    documents = np.cumsum(random.random((NUM_SEQUENCES, LENGTH)) < 0.15, axis=1)
    mine = Batch.of(tokens[sequences], targets[sequences], documents=documents[sequences])
    return [batch.inputs for batch in mine.split(MICRO_BATCH)], int((targets != IGNORED).sum())


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
                sums = self.model.loss(**batch)
            (sums.total / num_targets).backward()
            measured.append(sums)
        return summary(measured, self.model)

    @torch.no_grad()
    def validation_loss(self):
        self.model.eval()
        with self.autocast():
            sums = [self.model.loss(**batch) for batch in micro_batches(100)[0]]
        self.model.train()
        return {"nats": sum(s.cross_entropy for s in sums).double(), "targets": sum(s.num_tokens for s in sums)}

    def named_gradients(self):
        return {name: parameter.grad for name, parameter in self.model.named_parameters()}


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
        return summary(self.pipeline.gradients(*micro_batches(step), self.autocast), self.model)


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


def require_equal(found, wanted, what, tolerance):
    scale = wanted.abs().max().clamp(min=1e-12)
    error = ((found - wanted).abs().max() / scale).item()
    assert error < tolerance, f"{what}: {error}"


def require_one_process(world, name):
    schedule, bindings = CASES[name]
    trainer = trainer_of(bindings)
    alone = OneProcess(trainer)
    part = OneRank(trainer, schedule, init_device_mesh("cpu", (world.size,)))
    for key, weight in part.model.named_parameters():
        assert torch.equal(weight, alone.model.get_parameter(key)), f"initial {key}"
    for step in range(3):
        wanted, mine = alone.step(step), part.step(step)
        found = together(world, mine)
        assert found.keys() == wanted.keys()
        for key in found:
            require_equal(found[key], wanted[key], f"{name}, step {step}: {key}", 1e-6)
        gradients = alone.named_gradients()
        for key, gradient in part.named_gradients().items():
            if gradients[key] is None:
                assert gradient is None, key
            else:
                # Sums over micro-batches and over the two uses of a tied weight are in another order.
                require_equal(gradient, gradients[key], f"{name}, step {step}: gradient of {key}", 1e-5)
        update(alone, wanted)
        update(part, mine)
        wanted, found = alone.validation_loss(), together(world, part.validation_loss())
        assert found["targets"] == wanted["targets"]
        require_equal(found["nats"], wanted["nats"], f"{name}: validation loss", 1e-6)
    return {key: tensor.clone() for key, tensor in part.model.state_dict().items()}, alone.model.state_dict()


TENSOR_CASES = {
    "tensor": (OneForwardOneBackward(), MIXTURE, False),
    "tensor, tied, zero bubble": (InterleavedZeroBubble(), ["LanguageModel.tie_word_embeddings = True"], False),
    "tensor, sequence, tied": (
        InterleavedOneForwardOneBackward(),
        ["LanguageModel.tie_word_embeddings = True", "Embeddings.position = @PositionEmbedding"],
        True,
    ),
}


class OneRankOfFour(OneProcess):
    """A stage whose layers are divided over the tensor axis."""

    def __init__(self, world, trainer, schedule, is_sequence_parallel):
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pipeline", "tensor"))
        axis = mesh["pipeline"]
        self.model = copy.deepcopy(trainer.model)
        stages = cut(self.model, schedule, axis.get_local_rank(), 2)
        tensor_parallel(self.model, mesh["tensor"], sequence=is_sequence_parallel)
        materialize_shards(self.model, world, "cpu", trainer.seed).train()
        self.pipeline = Pipeline(self.model, stages, schedule, axis, 2 if is_sequence_parallel else 1)
        self.autocast = functools.partial(trainer.precision.autocast, torch.device("cpu"))
        self.counts = mesh["tensor"].get_local_rank() == 0

    def step(self, step):
        sums = summary(self.pipeline.gradients(*micro_batches(step), self.autocast), self.model)
        return sums if self.counts else {}


def require_one_process_of_four(world, name):
    schedule, bindings, is_sequence_parallel = TENSOR_CASES[name]
    trainer = trainer_of(bindings)
    alone = OneProcess(trainer)
    part = OneRankOfFour(world, trainer, schedule, is_sequence_parallel)
    wanted, found = alone.step(0), together(world, part.step(0))
    assert found.keys() == wanted.keys()
    for key in found:
        require_equal(found[key], wanted[key], f"{name}: {key}", 1e-6)
    gradients = alone.named_gradients()
    for key, gradient in part.named_gradients().items():
        require_equal(gradient.full_tensor(), gradients[key], f"{name}: gradient of {key}", 1e-5)
    nats = part.validation_loss()["nats"] * part.counts
    require_equal(sum(world.gather(nats)), alone.validation_loss()["nats"], f"{name}: validation loss", 1e-6)


def trains_four(world, names):
    for name in names:
        require_one_process_of_four(world, name)


def test_stages_whose_layers_are_divided_train_as_one_process():
    run_ranks(4, trains_four, list(TENSOR_CASES))


def trains(world, names):
    return {name: require_one_process(world, name) for name in names}


def test_every_schedule_and_model_trains_as_one_process():
    ranks = run_ranks(2, trains, list(CASES))
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
