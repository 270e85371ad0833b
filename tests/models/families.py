"""Model families of the transformers library: Juniper's model of each, and the mapping of weights."""

import math
import re
from functools import partial

import torch
from torch import Tensor, nn
from transformers import (
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen3NextConfig,
)

from ml.blocks import DecoderBlock, Pattern, Repeat
from ml.layers import (
    Attention,
    CausalConvolution,
    DynamicRotary,
    Embeddings,
    GatedMLP,
    GatedRMSNorm,
    LanguageModelHead,
    LatentAttention,
    Linear,
    LinearRotary,
    Llama3Rotary,
    Mamba,
    Mamba2,
    RMSNorm,
    Rotary,
    YarnRotary,
    gelu,
)
from ml.layers.mixers.gated_delta_net import GatedDeltaNet
from ml.layers.moe import MixtureOfExperts
from ml.layers.routing import SigmoidRouter, SoftmaxRouter
from ml.models import LanguageModel

NO_BIAS = partial(Linear, bias=False)
NAMES = {
    r"^(model\.embed_tokens|backbone\.embeddings)": "embeddings.token",
    r"self_attn\.q_proj": "mixer.query",
    r"self_attn\.k_proj": "mixer.key",
    r"self_attn\.v_proj": "mixer.value",
    r"self_attn\.o_proj": "mixer.output",
    r"self_attn\.q_norm": "mixer.query_norm",
    r"self_attn\.k_norm": "mixer.key_norm",
    r"self_attn\.q_a_proj": "mixer.query_down",
    r"self_attn\.q_a_layernorm": "mixer.query_norm",
    r"self_attn\.q_b_proj": "mixer.query_up",
    r"self_attn\.kv_a_layernorm": "mixer.key_value_norm",
    r"mlp\.gate\.weight": "mlp.router.weight",
    r"mlp\.gate\.e_score_correction_bias": "mlp.router.balance_bias",
    r"mlp\.shared_experts": "mlp.shared_expert",
    r"(gate|up|down)_proj\b": r"\1",
    r"input_layernorm": "mixer_norm",
    r"post_attention_layernorm": "mlp_norm",
    r"^(model\.norm|backbone\.norm_f)": "head.norm",
    r"^norm": "mixer_norm",
    r"^lm_head": "head",
    r"linear_attn\.conv1d": "mixer.convolution",
    r"linear_attn\.(A_log|dt_bias)": r"mixer.\1",
    r"linear_attn\.norm": "mixer.norm",
    r"linear_attn\.out_proj": "mixer.output",
}
WITH_FOUR_NORMS = {
    r"post_attention_layernorm": "mixer_output_norm",
    r"pre_feedforward_layernorm": "mlp_norm",
    r"post_feedforward_layernorm": "mlp_output_norm",
}


def rotary_of(parameters: dict) -> partial:
    """Returns the rotary embedding of transformers' `rope_parameters`."""
    kind = {
        "default": Rotary, "linear": LinearRotary, "dynamic": DynamicRotary, "llama3": Llama3Rotary, "yarn": YarnRotary,
    }[parameters["rope_type"]]  # fmt: skip
    ours = {
        "rope_theta": "theta",
        "factor": "factor",
        "low_freq_factor": "low_frequency_factor",
        "high_freq_factor": "high_frequency_factor",
        "original_max_position_embeddings": "original_length",
        "partial_rotary_factor": "fraction",
        "attention_factor": "attention_factor",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "truncate": "truncate",
    }
    return partial(kind, **{ours[name]: value for name, value in parameters.items() if name in ours})


def attention_of(config: PreTrainedConfig, **options) -> partial:
    sizes = {
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "head_size": config.head_dim,
        "linear": NO_BIAS,
    }
    if "rotary" not in options:
        options["rotary"] = rotary_of(config.rope_parameters)
    return partial(Attention, **{**sizes, **options})


def gated(size: int, **options) -> partial:
    return partial(GatedMLP, intermediate_size=size, linear=NO_BIAS, **options)


def model_of(config: PreTrainedConfig, decoder, norm, **options) -> LanguageModel:
    with torch.device("meta"):
        return LanguageModel(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            decoder=decoder,
            tie_word_embeddings=config.tie_word_embeddings,
            **{"head": partial(LanguageModelHead, normalization=norm), **options},
        )


def plain(config: PreTrainedConfig, mlp=None, **options) -> LanguageModel:
    """Llama, Qwen 2, Qwen 3, Mistral: equal blocks of attention and a gated MLP."""
    norm = partial(RMSNorm, epsilon=config.rms_norm_eps)
    mlp = mlp or gated(config.intermediate_size)
    block = partial(DecoderBlock, mixer=attention_of(config, **options), mlp=mlp, normalization=norm)
    return model_of(config, partial(Repeat, num_blocks=config.num_hidden_layers, block=block), norm)


def llama(config: LlamaConfig) -> LanguageModel:
    return plain(config)


def qwen2(config) -> LanguageModel:
    """Biases for query, key and value only."""
    model = plain(config, linear=Linear)
    for block in model.decoder.blocks:
        block.mixer.output.bias = None
    return model


def qwen3(config) -> LanguageModel:
    norm = partial(RMSNorm, epsilon=config.rms_norm_eps)
    return plain(config, query_norm=norm, key_norm=norm)


def mistral(config) -> LanguageModel:
    return plain(config, window_size=config.sliding_window)


def mixtral(config: MixtralConfig) -> LanguageModel:
    return plain(
        config,
        partial(
            MixtureOfExperts,
            num_experts=config.num_local_experts,
            experts_per_token=config.num_experts_per_tok,
            expert=gated(config.intermediate_size),
            router=partial(SoftmaxRouter, normalize=True, auxiliary_loss=0.0),
        ),
    )


def gemma(config: Gemma2Config | Gemma3TextConfig) -> LanguageModel:
    """Gemma 2 and 3: windows in some layers, four norms, caps (2) or query and key norms and two thetas (3)."""
    norm = partial(RMSNorm, epsilon=config.rms_norm_eps, zero_centered=True)
    options = {"softmax_scale": config.query_pre_attn_scalar**-0.5, "soft_cap": config.attn_logit_softcapping}
    if isinstance(config, Gemma3TextConfig):
        options |= {"query_norm": norm, "key_norm": norm}

    def block(kind: str) -> partial:
        parameters = config.rope_parameters.get(f"{kind}_attention", config.rope_parameters)
        window = config.sliding_window if kind == "sliding" else None
        mixer = attention_of(config, **options, rotary=rotary_of(parameters), window_size=window)
        mlp = gated(config.intermediate_size, activation=partial(gelu, approximate="tanh"))
        return partial(
            DecoderBlock, mixer=mixer, mlp=mlp, normalization=norm, mixer_output_norm=norm, mlp_output_norm=norm
        )

    kinds = [kind.removesuffix("_attention") for kind in config.layer_types]
    return model_of(
        config,
        partial(Pattern, blocks={kind: block(kind) for kind in dict.fromkeys(kinds)}, pattern=kinds),
        norm,
        embeddings=partial(Embeddings, scale=math.sqrt(config.hidden_size)),
        head=partial(LanguageModelHead, normalization=norm, logit_soft_cap=config.final_logit_softcapping),
    )


def deepseek_v3(config: DeepseekV3Config) -> LanguageModel:
    norm = partial(RMSNorm, epsilon=config.rms_norm_eps)
    mixer = partial(
        LatentAttention,
        num_heads=config.num_attention_heads,
        query_rank=config.q_lora_rank,
        key_value_rank=config.kv_lora_rank,
        rotary_size=config.qk_rope_head_dim,
        head_size=config.qk_nope_head_dim,
        value_head_size=config.v_head_dim,
        normalization=partial(RMSNorm, epsilon=1e-6),  # transformers leaves these at their default
        rotary=partial(Rotary, theta=config.rope_parameters["rope_theta"], interleaved=True),
        linear=NO_BIAS,
    )
    experts = partial(
        MixtureOfExperts,
        num_experts=config.n_routed_experts,
        experts_per_token=config.num_experts_per_tok,
        expert=gated(config.moe_intermediate_size),
        shared_expert=gated(config.moe_intermediate_size * config.n_shared_experts),
        router=partial(
            SigmoidRouter,
            num_groups=config.n_group,
            groups_per_token=config.topk_group,
            scale=config.routed_scaling_factor,
        ),
    )
    block = partial(DecoderBlock, mixer=mixer, normalization=norm)
    blocks = {"dense": partial(block, mlp=gated(config.intermediate_size)), "sparse": partial(block, mlp=experts)}
    kinds = ["dense" if i < config.first_k_dense_replace else "sparse" for i in range(config.num_hidden_layers)]
    return model_of(config, partial(Pattern, blocks=blocks, pattern=kinds), norm)


def qwen3_next(config: Qwen3NextConfig) -> LanguageModel:
    norm = partial(RMSNorm, epsilon=config.rms_norm_eps, zero_centered=True)
    full = attention_of(config, query_norm=norm, key_norm=norm, gated=True)
    recurrent = partial(
        GatedDeltaNet,
        num_heads=config.linear_num_key_heads,
        num_value_heads=config.linear_num_value_heads,
        key_head_size=config.linear_key_head_dim,
        value_head_size=config.linear_value_head_dim,
        norm=partial(GatedRMSNorm, epsilon=config.rms_norm_eps),
        linear=NO_BIAS,
    )
    block = partial(DecoderBlock, mlp=gated(config.intermediate_size), normalization=norm)
    mixers = {"linear": recurrent, "full": full}
    kinds = [kind.removesuffix("_attention") for kind in config.layer_types]
    blocks = {kind: partial(block, mixer=mixers[kind]) for kind in dict.fromkeys(kinds)}
    return model_of(config, partial(Pattern, blocks=blocks, pattern=kinds), norm)


def mamba(config: MambaConfig | Mamba2Config) -> LanguageModel:
    """Blocks with a state-space mixer and no MLP."""
    norm = partial(RMSNorm, epsilon=config.layer_norm_epsilon)
    options = {
        "state_size": config.state_size,
        "linear": NO_BIAS,
        "convolution": partial(CausalConvolution, kernel_size=config.conv_kernel),
    }
    if isinstance(config, Mamba2Config):
        sizes = {"head_size": config.head_dim, "num_groups": config.n_groups, "chunk_size": 4}
        gated_norm = partial(GatedRMSNorm, epsilon=config.layer_norm_epsilon)
        mixer = partial(Mamba2, **options, **sizes, norm=gated_norm)
    else:
        sizes = {"dt_rank": config.time_step_rank, "intermediate_size": config.intermediate_size}
        mixer = partial(Mamba, **options, **sizes)
    block = partial(DecoderBlock, mixer=mixer, mlp=None, normalization=norm)
    return model_of(config, partial(Repeat, num_blocks=config.num_hidden_layers, block=block), norm)


def tensors_of(oracle: nn.Module, model: LanguageModel, gradients: bool) -> dict[str, Tensor]:
    """Returns the weights and persistent buffers of `oracle`, or its gradients, under the names of `model`."""
    config = oracle.config
    kinds = getattr(model.decoder, "kinds", [])
    four_norms = any("pre_feedforward" in name for name, _ in oracle.named_parameters())
    names = {**NAMES, **WITH_FOUR_NORMS} if four_norms else NAMES
    found = {name: p.grad if gradients else p.detach() for name, p in oracle.named_parameters()}
    if not gradients:
        found |= {name: buffer for name, buffer in oracle.named_buffers() if "correction_bias" in name}
    tensors = {}
    for name, tensor in found.items():
        layer = re.match(r"(?:model|backbone)\.layers\.(\d+)\.(.*)", name)
        place, rest = "", name
        if layer:
            kind = f"{kinds[int(layer[1])]}." if kinds else ""
            place, rest = f"decoder.{kind}block_{layer[1]}.", layer[2]
        for part, piece in _parts(rest, tensor, config).items():
            for theirs, ours in names.items():
                part = re.sub(theirs, ours, part)
            tensors[place + part] = piece
    return tensors


def _parts(name: str, tensor: Tensor, config: PreTrainedConfig) -> dict[str, Tensor]:
    """Splits tensors that transformers stores together and Juniper separately."""
    if name.endswith("kv_a_proj_with_mqa.weight"):
        sizes = (config.kv_lora_rank, config.qk_rope_head_dim)
        return dict(zip(("mixer.key_value_down.weight", "mixer.key_rotary.weight"), tensor.split(sizes), strict=True))
    if name.endswith("kv_b_proj.weight"):
        by_head = tensor.unflatten(0, (config.num_attention_heads, -1))
        key, value = by_head.split((config.qk_nope_head_dim, config.v_head_dim), dim=1)
        return {"mixer.key_up.weight": key.flatten(0, 1), "mixer.value_up.weight": value.flatten(0, 1)}
    if name.endswith("experts.gate_up_proj"):
        parts = {}
        for index, expert in enumerate(tensor):
            gate, up = expert.chunk(2)
            parts |= {f"mlp.experts.expert_{index}.gate.weight": gate, f"mlp.experts.expert_{index}.up.weight": up}
        return parts
    if name.endswith("experts.down_proj"):
        return {f"mlp.experts.expert_{index}.down.weight": expert for index, expert in enumerate(tensor)}
    if name.startswith("mixer.") and isinstance(config, MambaConfig | Mamba2Config):
        return _parts_of_mamba(name, tensor, config)
    if isinstance(config, Qwen3NextConfig):
        return _parts_of_qwen3_next(name, tensor, config)
    return {name: tensor}


def _parts_of_mamba(name: str, tensor: Tensor, config: MambaConfig | Mamba2Config) -> dict[str, Tensor]:
    size = config.expand * config.hidden_size
    if name == "mixer.x_proj.weight":
        sizes = {"dt_down": config.time_step_rank, "B": config.state_size, "C": config.state_size}
    elif name != "mixer.in_proj.weight":
        names = {
            "conv1d": "convolution",
            "dt_proj.weight": "dt.weight",
            "dt_proj.bias": "dt_bias",
            "out_proj": "output",
        }
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        return {name: tensor}
    elif isinstance(config, Mamba2Config):
        group_size = config.n_groups * config.state_size
        sizes = {"gate": size, "x": size, "B": group_size, "C": group_size, "dt": config.num_heads}
    else:
        sizes = {"x": config.intermediate_size, "gate": config.intermediate_size}
    return {f"mixer.{key}.weight": part for key, part in zip(sizes, tensor.split(list(sizes.values())), strict=True)}


def _parts_of_qwen3_next(name: str, tensor: Tensor, config: Qwen3NextConfig) -> dict[str, Tensor]:
    heads, value_heads = config.linear_num_key_heads, config.linear_num_value_heads
    if name == "self_attn.q_proj.weight":
        query, gate = tensor.unflatten(0, (config.num_attention_heads, 2, -1)).unbind(1)
        return {"mixer.query.weight": query.flatten(0, 1), "mixer.gate.weight": gate.flatten(0, 1)}
    if name.endswith("in_proj_qkvz.weight"):
        key_size, value_size = config.linear_key_head_dim, value_heads // heads * config.linear_value_head_dim
        parts = tensor.unflatten(0, (heads, -1)).split((key_size, key_size, value_size, value_size), dim=1)
        names = ("query", "key", "value", "gate")
        return {f"mixer.{key}.weight": part.flatten(0, 1) for key, part in zip(names, parts, strict=True)}
    if name.endswith("in_proj_ba.weight"):
        beta, decay = tensor.unflatten(0, (heads, -1)).chunk(2, dim=1)
        return {"mixer.beta.weight": beta.flatten(0, 1), "mixer.decay.weight": decay.flatten(0, 1)}
    return {name: tensor}
