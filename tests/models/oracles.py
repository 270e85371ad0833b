"""Models of the transformers library, and the mapping of their weights to Juniper's names."""

from functools import partial

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from ml.blocks import DecoderBlock, Repeat
from ml.layers import (
    MLP,
    Attention,
    Embeddings,
    GatedMLP,
    LanguageModelHead,
    LayerNorm,
    Linear,
    PositionEmbedding,
    RMSNorm,
    Rotary,
    gelu,
)
from ml.models import LanguageModel, materialize

LLAMA_NAMES = {
    "model.embed_tokens": "embeddings.token",
    "model.layers.": "decoder.block_",
    "self_attn.q_proj": "mixer.query",
    "self_attn.k_proj": "mixer.key",
    "self_attn.v_proj": "mixer.value",
    "self_attn.o_proj": "mixer.output",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.down_proj": "mlp.down",
    "input_layernorm": "mixer_norm",
    "post_attention_layernorm": "mlp_norm",
    "model.norm": "head.norm",
    "lm_head": "head",
}
GPT2_NAMES = {
    "transformer.wte": "embeddings.token",
    "transformer.wpe": "embeddings.position",
    "transformer.h.": "decoder.block_",
    "ln_1": "mixer_norm",
    "ln_2": "mlp_norm",
    "attn.c_proj": "mixer.output",
    "mlp.c_fc": "mlp.up",
    "mlp.c_proj": "mlp.down",
    "transformer.ln_f": "head.norm",
}


def rename(name: str, names: dict[str, str]) -> str:
    for theirs, ours in names.items():
        name = name.replace(theirs, ours)
    return name


def llama_like(config: LlamaConfig) -> LanguageModel:
    """Returns Juniper's model of a `LlamaConfig`, on the meta device."""
    norm = partial(RMSNorm, epsilon=config.rms_norm_eps)
    attention = partial(
        Attention,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_size=config.head_dim,
        rotary=partial(Rotary, theta=config.rope_parameters["rope_theta"]),
        linear=partial(Linear, bias=config.attention_bias),
    )
    mlp = partial(GatedMLP, intermediate_size=config.intermediate_size, linear=partial(Linear, bias=config.mlp_bias))
    block = partial(DecoderBlock, mixer=attention, mlp=mlp, normalization=norm)
    with torch.device("meta"):
        return LanguageModel(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            decoder=partial(Repeat, num_blocks=config.num_hidden_layers, block=block),
            head=partial(LanguageModelHead, normalization=norm),
            tie_word_embeddings=config.tie_word_embeddings,
        )


def gpt2_like(config: GPT2Config) -> LanguageModel:
    """Returns Juniper's model of a `GPT2Config`, on the meta device."""
    attention = partial(Attention, num_heads=config.n_head, rotary=None)
    mlp = partial(MLP, activation=partial(gelu, approximate="tanh"))
    block = partial(DecoderBlock, mixer=attention, mlp=mlp, normalization=LayerNorm)
    with torch.device("meta"):
        return LanguageModel(
            vocab_size=config.vocab_size,
            hidden_size=config.n_embd,
            embeddings=partial(Embeddings, position=partial(PositionEmbedding, num_positions=config.n_positions)),
            decoder=partial(Repeat, num_blocks=config.n_layer, block=block),
            head=partial(LanguageModelHead, normalization=LayerNorm),
            tie_word_embeddings=True,
        )


def llama_tensors(oracle: LlamaForCausalLM, gradients: bool) -> dict[str, torch.Tensor]:
    """Returns the weights of `oracle`, or their gradients, under Juniper's names."""
    return {
        rename(name, LLAMA_NAMES): parameter.grad if gradients else parameter.detach()
        for name, parameter in oracle.named_parameters()
    }


def gpt2_tensors(oracle: GPT2LMHeadModel, gradients: bool) -> dict[str, torch.Tensor]:
    """Like `llama_tensors`; GPT-2 stores linear weights transposed, and query, key and value together."""
    tensors = {}
    for name, parameter in oracle.named_parameters():
        tensor = parameter.grad if gradients else parameter.detach()
        if ".c_" in name and name.endswith("weight"):
            tensor = tensor.T
        if "c_attn" in name:
            for ours, part in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                tensors[rename(name, GPT2_NAMES).replace("attn.c_attn", f"mixer.{ours}")] = part
        else:
            tensors[rename(name, GPT2_NAMES)] = tensor
    return tensors


def with_weights(model: nn.Module, weights: dict[str, torch.Tensor]) -> nn.Module:
    """Materializes `model` and copies `weights`, which must match its parameters exactly."""
    materialize(model)
    model.load_state_dict(weights, strict=True)
    return model
