"""Logits, loss and every gradient of model families against transformers, with its weights, in float32."""

import families
import pytest
import torch
import transformers
from oracles import with_weights
from test_against_transformers import CLOSE, assert_same, batch

SIZES = {
    "vocab_size": 61,
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # large enough that attention is far from uniform
    "attn_implementation": "eager",
    "tie_word_embeddings": False,
    "pad_token_id": None,  # else transformers gives token 0 an embedding of zero and no gradient
}
MOST = {"rope_theta": 100.0}  # so that a few positions turn all pairs
YARN = {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
EXPERTS = {"num_local_experts": 5, "num_experts_per_tok": 2, "router_jitter_noise": 0.0}
DEEPSEEK = {
    "num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6,
    "v_head_dim": 5, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "head_dim": 4,
    "moe_intermediate_size": 20, "first_k_dense_replace": 1, "n_shared_experts": 2, "routed_scaling_factor": 2.5,
}  # fmt: skip
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6, "linear_value_head_dim": 5,
    "num_experts": 0, "mlp_only_layers": [0, 1, 2], "rope_parameters": {**MOST, "partial_rotary_factor": 0.5},
}  # fmt: skip
GEMMA = {"query_pre_attn_scalar": 7, "sliding_window": 5, "tie_word_embeddings": True}
CAPS = {"attn_logit_softcapping": 4.0, "final_logit_softcapping": 3.0}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
FAMILIES = {
    "Llama": ("Llama", families.llama, {"rope_parameters": {**MOST, "rope_type": "default"}}),
    "Llama, linear": ("Llama", families.llama, {"rope_parameters": {**MOST, "rope_type": "linear", "factor": 3.0}}),
    "Llama, Llama 3": ("Llama", families.llama, {"rope_parameters": {**MOST, **LLAMA3}}),
    "Llama, YaRN": ("Llama", families.llama, {"rope_parameters": {**MOST, **YARN}}),
    "Llama, YaRN by hand": (
        "Llama",
        families.llama,
        {"rope_parameters": {**MOST, **YARN, "attention_factor": 1.3, "beta_fast": 5.0, "truncate": False}},
    ),
    "Qwen 2": ("Qwen2", families.qwen2, {}),
    "Qwen 3": ("Qwen3", families.qwen3, {}),
    "Mistral": ("Mistral", families.mistral, {"sliding_window": 6}),
    "Mixtral": ("Mixtral", families.mixtral, EXPERTS),
    "Gemma 2": ("Gemma2", families.gemma, {**GEMMA, **CAPS, "layer_types": SLIDING}),
    "Gemma 3": (
        "Gemma3",
        families.gemma,
        {
            **GEMMA,
            "layer_types": SLIDING,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
            },
        },
    ),
    "DeepSeek-V3": ("DeepseekV3", families.deepseek_v3, DEEPSEEK),
    "DeepSeek-V3, whole queries": ("DeepseekV3", families.deepseek_v3, {**DEEPSEEK, "q_lora_rank": None}),
    "Mamba": ("Mamba", families.mamba, {"state_size": 5, "time_step_rank": 3, "conv_kernel": 3}),
    "Mamba-2": (
        "Mamba2",
        families.mamba,
        {"state_size": 6, "num_heads": 10, "head_dim": 8, "n_groups": 2, "conv_kernel": 3, "chunk_size": 5},
    ),
    "Qwen 3 Next": (
        "Qwen3Next",
        families.qwen3_next,
        {**LINEAR, "layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    ),
}


def oracle_of(name: str, changes: dict) -> torch.nn.Module:
    torch.manual_seed(3)
    config_class = getattr(transformers, f"{name}TextConfig", None) or getattr(transformers, f"{name}Config")
    oracle = getattr(transformers, f"{name}ForCausalLM")(config_class(**{**SIZES, **changes}))
    with torch.no_grad():
        for key, tensor in (*oracle.named_parameters(), *oracle.named_buffers()):
            if "norm" in key or "bias" in key:  # transformers initializes them to 1 and 0, which would hide a mistake
                tensor.add_(torch.randn_like(tensor), alpha=0.2)
    return oracle.eval()


@pytest.mark.parametrize("shape", [(2, 19), (3, 8)], ids=str)
@pytest.mark.parametrize(("name", "build", "changes"), FAMILIES.values(), ids=FAMILIES)
def test_a_family_has_the_same_logits_loss_and_gradients(name, build, changes, shape):
    oracle = oracle_of(name, changes)
    model = build(oracle.config)
    model = with_weights(model, families.tensors_of(oracle, model, gradients=False)).eval()
    tokens, targets = batch(7, oracle.config.vocab_size, shape)

    def tensors(oracle, gradients):
        return families.tensors_of(oracle, model, gradients)

    assert_same(model, oracle, oracle(tokens).logits, targets, tokens, tensors)


@pytest.mark.parametrize("length", [20, 33])
def test_dynamic_scaling_follows_the_length(length):
    parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0, "original_max_position_embeddings": 24}
    oracle = oracle_of("Llama", {"max_position_embeddings": 24, "rope_parameters": parameters})
    model = families.llama(oracle.config)
    model = with_weights(model, families.tensors_of(oracle, model, gradients=False))
    tokens, _ = batch(7, oracle.config.vocab_size, (2, length))
    torch.testing.assert_close(model(tokens), oracle(tokens).logits, **CLOSE)
