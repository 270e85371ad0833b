"""One training step of a Llama by Juniper, by transformers and by hand, from equal weights and tokens."""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from handwritten_llama import Llama
from torch import Tensor, nn

import ml
from ml.data import Batch
from ml.distributed import Layout, World
from ml.distributed.mesh import Mesh
from ml.distributed.parallelize import parallelize
from ml.training import AdamW, Float32, MixedBFloat16, PureBFloat16
from ml.training.gradient_graphs import GradientGraphs
from ml.training.optimizers import group_parameters
from ml.training.precision import cast_parameters
from ml.training.state import TrainState
from ml.training.step import train_step

CPU = torch.device("cpu")
LEARNING_RATE, BETAS, DECAY, MAX_NORM = 1e-4, (0.9, 0.95), 0.1, 1.0
# The weights are float32, but for the last one.
PRECISIONS = {"float32": Float32(), "bfloat16": MixedBFloat16(), "pure bfloat16": PureBFloat16()}


class Shape(NamedTuple):
    """Shape of a model and of its batch."""

    vocab: int = 8192
    hidden: int = 512
    blocks: int = 8
    heads: int = 8
    kv_heads: int = 4
    intermediate: int = 1408
    batch: int = 4
    length: int = 512

    @property
    def products(self) -> dict[tuple[int, int], int]:
        """Number of weights of each (inputs, outputs)."""
        kv_size = self.hidden // self.heads * self.kv_heads
        return {
            (self.hidden, self.hidden): 2 * self.blocks,
            (self.hidden, kv_size): 2 * self.blocks,
            (self.hidden, self.intermediate): 2 * self.blocks,
            (self.intermediate, self.hidden): self.blocks,
            (self.hidden, self.vocab): 1,
        }

    @property
    def flops(self) -> float:
        """Operations of the products of a step, with causal attention counted once."""
        weights = sum(count * size[0] * size[1] for size, count in self.products.items())
        attention = 12 * self.hidden * self.blocks * (self.length + 1) / 2
        return (6.0 * weights + attention) * self.batch * self.length


def juniper_model(shape: Shape, *bindings: str) -> nn.Module:
    """Builds the model by Juniper."""
    sizes = {
        "LanguageModel.vocab_size": shape.vocab,
        "LanguageModel.hidden_size": shape.hidden,
        "decoder/Repeat.num_blocks": shape.blocks,
        "Attention.num_heads": shape.heads,
        "Attention.num_kv_heads": shape.kv_heads,
        "GatedMLP.intermediate_size": shape.intermediate,
    }
    return ml.build(ml.load("base.gin", [*(f"{key} = {value}" for key, value in sizes.items()), *bindings]))


def transformers_model(shape: Shape) -> nn.Module:
    """Builds the model by transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.blocks,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.intermediate,
        max_position_embeddings=shape.length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def weights_in_order(model: nn.Module) -> list[Tensor]:
    """The weights of any of the three models, in one order."""
    if isinstance(model, Llama):
        names = "attention_norm query key value output mlp_norm gate up down"
        blocks, ends = model.blocks, [model.embedding, model.norm, model.head]
        parts = [getattr(block, name) for block in blocks for name in names.split()]
    elif isinstance(model, ml.models.LanguageModel):
        names = "mixer_norm mixer.query mixer.key mixer.value mixer.output mlp_norm mlp.gate mlp.up mlp.down"
        blocks, ends = model.decoder.blocks, [model.embeddings.token, model.head.norm]
        parts = [block.get_submodule(name) for block in blocks for name in names.split()]
        return [part.weight for part in (*ends, *parts)] + [model.head.weight]
    else:
        names = "input_layernorm self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj "
        names += "post_attention_layernorm mlp.gate_proj mlp.up_proj mlp.down_proj"
        blocks, ends = model.model.layers, [model.model.embed_tokens, model.model.norm, model.lm_head]
        parts = [block.get_submodule(name) for block in blocks for name in names.split()]
    return [part.weight for part in (*ends[:2], *parts, ends[2])]


def batch_of(shape: Shape, device: torch.device = CPU) -> Batch:
    """Random tokens; the last one of a row has no target, as in transformers."""
    tokens = torch.randint(shape.vocab, (shape.batch, shape.length), generator=torch.Generator().manual_seed(0))
    targets = torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=-100)
    return Batch.of(tokens.numpy(), targets.numpy()).to(device)


def juniper_step(
    model: nn.Module, batch: Batch, precision: str, compile: bool, cuda_graphs: bool = False
) -> Callable[[], Tensor]:
    """A step of Juniper, as a run takes it; returns the loss before it, on the device."""
    model.train()
    cast_parameters(model, PRECISIONS[precision].parameter_dtype)
    device = batch.tokens.device
    layout = Layout(World(device=device))
    parallelize(model, layout, Mesh(), compile=compile)
    groups = group_parameters((name, weight, 1.0, None) for name, weight in model.named_parameters())
    optimizer = AdamW(LEARNING_RATE, BETAS, weight_decay=DECAY).create(groups)
    state = TrainState(model, optimizer, groups, torch.zeros((), dtype=torch.int64, device=device), layout=layout)
    state.graphs = GradientGraphs(device) if cuda_graphs else None
    return lambda: train_step(state, [batch], PRECISIONS[precision], MAX_NORM, device).loss


def torch_step(model: nn.Module, loss: Callable[[], Tensor], batch: Batch, precision: str) -> Callable[[], Tensor]:
    """A step written with torch alone; returns the loss before it."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, BETAS, weight_decay=DECAY, fused=True)
    device = batch.tokens.device.type
    autocast = contextlib.nullcontext if precision == "float32" else lambda: torch.autocast(device, torch.bfloat16)

    def step() -> Tensor:
        with autocast():
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.detach()

    return step


def transformers_step(model: nn.Module, batch: Batch, precision: str, compile: bool) -> Callable[[], Tensor]:
    """A step of transformers; returns the loss before it."""
    call = torch.compile(model) if compile else model
    return torch_step(model, lambda: call(batch.tokens, labels=batch.tokens, use_cache=False).loss, batch, precision)


def handwritten_step(model: nn.Module, batch: Batch, precision: str, compile: bool) -> Callable[[], Tensor]:
    """A step of the handwritten model; returns the loss before it."""
    call = torch.compile(model) if compile else model
    return torch_step(model, lambda: call(batch.tokens, batch.targets), batch, precision)


def step_of(kind: str, shape: Shape, precision: str, compile: bool, device: torch.device = CPU) -> Callable[[], Tensor]:
    """A step of "juniper", "transformers" or "handwritten", all with the same initial weights."""
    torch.manual_seed(0)
    source = juniper_model(shape)
    model, make = source, juniper_step
    if kind == "transformers":
        model, make = transformers_model(shape), transformers_step
    elif kind == "handwritten":
        model, make = Llama(*shape[:6], shape.length), handwritten_step
    with torch.no_grad():
        for mine, weight in zip(weights_in_order(model), weights_in_order(source), strict=True):
            mine.copy_(weight)
    return make(model.to(device), batch_of(shape, device), precision, compile)
