"""Models whose sequences are divided into stretches, and the comparison with one process."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from ml.blocks import (
    ActivationCheckpointing,
    DecoderBlock,
    MultiTokenPrediction,
    Pattern,
    Repeat,
    SelectiveActivationCheckpointing,
)
from ml.blocks.multi_token_prediction import PredictionDepth
from ml.distributed.stretch import context_parallel
from ml.layers import (
    Attention,
    DynamicRotary,
    Embeddings,
    GatedDeltaNet,
    GatedMLP,
    KimiDeltaAttention,
    LanguageModelHead,
    LatentAttention,
    LightningAttention,
    Linear,
    LinearRotary,
    Llama3Rotary,
    LoRA,
    Mamba,
    Mamba2,
    MixtureOfExperts,
    ParallelMixer,
    PositionEmbedding,
    ShortConvolutionMixer,
    SigmoidRouter,
    SoftmaxRouter,
    StochasticMixer,
    YarnRotary,
)
from ml.layers.context import Context
from ml.layers.loss import Teacher
from ml.layers.protocol import NoProducts
from ml.models import LanguageModel, materialize
from ml.targets import IGNORED

BATCH_SIZE, LENGTH, VOCABULARY, HIDDEN = 2, 16, 64, 32
# Of the largest entry. The models are float64, their losses are computed in float32.
TOLERANCE = 1e-6
TOLERANCE_OF_BFLOAT16 = 0.03  # of 8 bits, and of gradients that are rounded before they are summed


class Case(NamedTuple):
    """A model and what it is asked for."""

    mixer: Callable[..., nn.Module]
    block: dict[str, Any] = {}  # noqa: RUF012
    model: dict[str, Any] = {}  # noqa: RUF012
    repeat: dict[str, Any] = {}  # noqa: RUF012
    documents: bool = False
    teacher: bool = False
    frozen: tuple[str, ...] = ()  # parameters whose names start with one of these
    first_masked: bool = False  # no targets in the first stretch
    autocast: bool = False  # to bfloat16


ATTENTION = partial(Attention, num_heads=4, num_kv_heads=2)
LATENT = partial(
    LatentAttention, num_heads=4, key_value_rank=12, head_size=8, rotary_size=4, value_head_size=6, query_rank=10
)
MAMBA = partial(Mamba, state_size=4)
MAMBA2 = partial(Mamba2, head_size=8, state_size=6, num_groups=2, chunk_size=4)
DELTA = partial(GatedDeltaNet, num_heads=2, num_value_heads=4, key_head_size=8, value_head_size=6, chunk_size=4)
KIMI = partial(KimiDeltaAttention, num_heads=2, key_head_size=8, value_head_size=6, chunk_size=4)
AGAIN = {"activation_checkpointing": ActivationCheckpointing}
SELECTED = {"activation_checkpointing": SelectiveActivationCheckpointing}
EXPERTS = partial(MixtureOfExperts, num_experts=4, expert=partial(GatedMLP, intermediate_size=24), router=SigmoidRouter)


def block_of(mixer: Callable[..., nn.Module], hidden_size: int, **options: Any) -> nn.Module:
    options = {"mlp": partial(GatedMLP, intermediate_size=48), **options}
    return DecoderBlock(hidden_size, mixer=mixer, **options)


def further_tokens(num_depths: int, mixer: Callable[..., nn.Module], **options: Any) -> Callable[..., nn.Module]:
    depth = partial(PredictionDepth, block=partial(block_of, mixer, **options))
    return partial(MultiTokenPrediction, num_depths=num_depths, depth=depth)


class Twice(NoProducts):
    """A block that is applied twice."""

    def __init__(self, hidden_size: int, block: Callable[..., nn.Module]):
        super().__init__()
        self.block = block(hidden_size)

    def mixing_children(self) -> dict[str, nn.Module]:
        return {"block": self.block}

    def forward(self, x: Tensor, context: Context) -> Tensor:
        return self.block(self.block(x, context), context)


def hybrid(hidden_size: int) -> nn.Module:
    blocks = {
        name: partial(block_of, mixer) for name, mixer in (("full", ATTENTION), ("scan", MAMBA2), ("rule", DELTA))
    }
    return Pattern(hidden_size, blocks=blocks, pattern=("scan", "full", "rule", "scan"))


CASES = {
    "attention": Case(ATTENTION),
    "attention, documents": Case(ATTENTION, documents=True),
    "attention without rotary, learned positions": Case(
        partial(ATTENTION, rotary=None), model={"embeddings": partial(Embeddings, position=PositionEmbedding)}
    ),
    "learned positions, documents": Case(
        ATTENTION, model={"embeddings": partial(Embeddings, position=PositionEmbedding)}, documents=True
    ),
    "lightning attention": Case(partial(LightningAttention, num_heads=4, chunk_size=4), documents=True),
    "parallel mixers": Case(
        partial(ParallelMixer, mixers={"full": partial(ATTENTION, alibi=True), "scan": partial(Mamba2, head_size=8)})
    ),
    "linear rotary": Case(partial(ATTENTION, rotary=LinearRotary)),
    "Llama 3 rotary, documents": Case(
        partial(ATTENTION, rotary=partial(Llama3Rotary, original_length=8)), documents=True
    ),
    "YaRN": Case(partial(ATTENTION, rotary=partial(YarnRotary, original_length=8))),
    "dynamic rotary": Case(partial(ATTENTION, rotary=partial(DynamicRotary, original_length=4))),
    "dynamic rotary, documents": Case(
        partial(LATENT, rotary=partial(DynamicRotary, original_length=2)), documents=True
    ),
    "window of the position itself": Case(partial(ATTENTION, window_size=1)),
    "window within the previous stretch": Case(partial(ATTENTION, window_size=4)),
    "window within the previous stretch, documents": Case(partial(ATTENTION, window_size=4), documents=True),
    "window over several stretches": Case(partial(ATTENTION, window_size=11), documents=True),
    "sinks, cap, gate": Case(partial(ATTENTION, attention_sinks=True, soft_cap=2.0, gated=True), documents=True),
    "sinks in a window, recomputed": Case(partial(ATTENTION, attention_sinks=True, window_size=3), block=AGAIN),
    "attention, recomputed": Case(ATTENTION, block=AGAIN, documents=True),
    "attention, selectively recomputed": Case(ATTENTION, block=SELECTED),
    "adapters on frozen attention": Case(
        partial(ATTENTION, linear=partial(Linear, apply_peft=LoRA)), frozen=("embeddings.", "decoder.block_0.mlp")
    ),
    "latent attention": Case(LATENT),
    "latent attention, documents, recomputed": Case(LATENT, block=AGAIN, documents=True),
    "latent attention in a window": Case(partial(LATENT, window_size=5, query_rank=None)),
    "Mamba": Case(MAMBA),
    "Mamba, documents, recomputed": Case(MAMBA, block=AGAIN, documents=True),
    "Mamba-2": Case(MAMBA2),
    "Mamba-2, documents": Case(MAMBA2, documents=True),
    "Mamba-2, recomputed": Case(MAMBA2, block=AGAIN),
    "Mamba-2, selectively recomputed": Case(MAMBA2, block=SELECTED, documents=True),
    "Mamba-2, shared blocks": Case(MAMBA2, repeat={"shared": True}),
    "Mamba-2, shared blocks, recomputed": Case(MAMBA2, block=AGAIN, repeat={"shared": True}),
    "Mamba-2, a block applied twice, recomputed": Case(
        MAMBA2, model={"decoder": partial(Twice, block=partial(block_of, MAMBA2, **AGAIN))}
    ),
    "Mamba-2, first block frozen": Case(MAMBA2, frozen=("embeddings.", "decoder.block_0.")),
    "gated delta net": Case(DELTA),
    "gated delta net, documents, recomputed": Case(DELTA, block=AGAIN, documents=True),
    "Kimi delta attention": Case(KIMI, documents=True),
    "short convolution": Case(ShortConvolutionMixer, documents=True),
    "short convolution, recomputed": Case(ShortConvolutionMixer, block=AGAIN),
    "stochastic": Case(partial(StochasticMixer, mixers={"full": ATTENTION, "scan": MAMBA2}, main="scan")),
    "hybrid, documents": Case(ATTENTION, model={"decoder": hybrid}, documents=True),
    "experts without a loss": Case(ATTENTION, block={"mlp": EXPERTS}, documents=True),
    "chunked loss": Case(ATTENTION, model={"head": partial(LanguageModelHead, loss_chunk_size=5, z_loss=0.01)}),
    "tied weights": Case(MAMBA, model={"tie_word_embeddings": True}),
    "experts with a loss": Case(
        ATTENTION, block={"mlp": partial(EXPERTS, router=partial(SoftmaxRouter, auxiliary_loss=0.1, z_loss=0.01))}
    ),
    "hybrid, bfloat16": Case(ATTENTION, model={"decoder": hybrid}, autocast=True),
    "gated delta net, bfloat16, recomputed": Case(DELTA, block=AGAIN, documents=True, autocast=True),
    "no targets in the first stretch": Case(MAMBA2, first_masked=True),
    "distillation": Case(ATTENTION, teacher=True),
    "further tokens": Case(ATTENTION, model={"multi_token": further_tokens(2, ATTENTION)}),
    "further tokens, documents, recurrent": Case(
        MAMBA2, model={"multi_token": further_tokens(3, MAMBA2, **AGAIN)}, documents=True
    ),
}


def model_of(case: Case) -> LanguageModel:
    """The model of a case, in float64, so that the only difference is the order of sums."""
    block = partial(block_of, case.mixer, **case.block)
    options = {"decoder": partial(Repeat, block=block, num_blocks=2, **case.repeat), **case.model}
    model = materialize(LanguageModel(vocab_size=VOCABULARY, hidden_size=HIDDEN, **options)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("A_log", "dt_bias")):  # states that outlast a stretch
                parameter.fill_(-1.0 if name.endswith("A_log") else 0.0)
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=0.1)
            parameter.requires_grad_(not name.startswith(case.frozen or "-"))
    return model.float() if case.autocast else model


def inputs_of(case: Case, seed: int) -> dict[str, Any]:
    """Whole sequences with targets of an unequal number in each stretch."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCABULARY, (BATCH_SIZE, LENGTH), generator=generator)
    targets = tokens.roll(-1, 1)
    targets[0, : LENGTH // 3] = IGNORED
    targets[1, LENGTH // 2 + 1 : -2] = IGNORED
    if case.first_masked:
        targets[:, : LENGTH // 2] = IGNORED
    inputs: dict[str, Any] = {"tokens": tokens, "targets": targets}
    if case.documents:
        inputs["documents"] = (torch.rand(BATCH_SIZE, LENGTH, generator=generator) < 0.2).cumsum(1)
    if case.teacher:
        logits = torch.randn(BATCH_SIZE, LENGTH, VOCABULARY, generator=generator)
        inputs["teacher"] = Teacher(logits, weight=0.3, temperature=2.0)
    return inputs


def measured(model: LanguageModel, case: Case) -> dict[str, Tensor]:
    """Loss, parts, loads and gradients over two micro-batches, and the loss of a third without training."""
    # As in a pipeline: the second forward pass before the first backward pass.
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case.autocast):
        losses = [model.loss(**inputs_of(case, seed)) for seed in (1, 2)]
    results: dict[str, Tensor] = {}
    for sums in losses:
        sums.total.backward()
        values = {"total": sums.total, "loss": sums.cross_entropy, "tokens": sums.num_tokens, **sums.parts}
        loads = {f"load {index}": load for index, (_, load) in enumerate(sums.loads)}
        for name, value in {**values, **loads}.items():
            results[name] = results.get(name, 0.0) + value.detach().double()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            results[f"gradient of {name}"] = gradient.clone()
    model.zero_grad()
    model.eval()
    with torch.no_grad():
        results["evaluated"] = model.loss(**inputs_of(case, 3)).total
    model.train()
    return results


def router_losses_of_stretches(model: LanguageModel, num_stretches: int) -> None:
    """Lets every router of a model in one process add the losses of each stretch, weighted by its targets."""
    weights: list[Tensor] = []
    loss_in_context = model.loss_in_context

    def weighted(tokens: Tensor, targets: Tensor, *args: Any, **kwargs: Any) -> Any:
        counts = torch.stack([(part != IGNORED).sum() for part in targets.chunk(num_stretches, dim=1)])
        weights[:] = (counts / counts.sum()).unbind()
        return loss_in_context(tokens, targets, *args, **kwargs)

    model.loss_in_context = weighted
    for router in [module for module in model.modules() if isinstance(module, SoftmaxRouter)]:
        losses = router.losses

        def in_stretches(*arguments: Tensor, losses=losses, router=router) -> list:
            logits, probabilities, _, routed = arguments
            whole = [x.unflatten(0, (BATCH_SIZE, -1)) for x in (logits, probabilities, routed)]
            total = []
            for weight, *parts in zip(weights, *(x.chunk(num_stretches, 1) for x in whole), strict=True):
                part, probability, own = (x.flatten(0, 1) for x in parts)
                load = router.load(probability.topk(router.experts_per_token, dim=-1).indices, own)
                total.extend(weight * loss for loss in losses(part, probability, load, own))
            return total

        router.losses = in_stretches


def differences(world: Any, names: list[str]) -> dict[str, list[tuple[str, float]]]:
    """The results of each case that differ from those of one process, and by how much of the largest entry."""
    axis = init_device_mesh("cpu", (world.size,), mesh_dim_names=("context",))["context"]
    return {name: _difference(world, CASES[name], axis) for name in names}


def _of_one_process(case: Case, num_stretches: int) -> dict[str, Tensor]:
    model = model_of(case)
    router_losses_of_stretches(model, num_stretches)
    return {name: value.detach() for name, value in measured(model, case).items()}


def _difference(world: Any, case: Case, axis: Any) -> list[tuple[str, float]]:
    expected = world.first(lambda: _of_one_process(case, axis.size()))
    model = model_of(case)
    context_parallel(model, axis)
    found = measured(model, case)
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    wrong = []
    for name, value in found.items():
        dist.all_reduce(value)
        # The gradient of a bias of keys is 0 but for rounding.
        error = (value - expected[name]).abs().max() / expected[name].abs().max().clamp(min=1e-3)
        if not error < (TOLERANCE_OF_BFLOAT16 if case.autocast else TOLERANCE):
            wrong.append((name, error.item()))
    return wrong
