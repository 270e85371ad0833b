"""The config.json of released models, whose numbers of parameters are published."""

import pytest

from ml.interop.expressing import model_of
from ml.interop.importing import values_of

PLAIN = {"attention_dropout": 0.0, "initializer_range": 0.02, "torch_dtype": "bfloat16", "use_cache": True}
FALCON = {
    **PLAIN, "model_type": "falcon", "architectures": ["FalconForCausalLM"], "alibi": False, "bias": False,
    "apply_residual_connection_post_layernorm": False, "bos_token_id": 11, "eos_token_id": 11, "hidden_dropout": 0.0,
    "layer_norm_epsilon": 1e-05, "vocab_size": 65024, "parallel_attn": True,
}  # fmt: skip
# By name: the fields, and the number of parameters.
RELEASED = {
    "Falcon 7B": (
        {
            **FALCON, "hidden_size": 4544, "num_attention_heads": 71, "num_hidden_layers": 32, "multi_query": True,
            "new_decoder_architecture": False,
        },
        6_921_720_704,
    ),
    "Falcon 40B": (
        {
            **FALCON, "hidden_size": 8192, "num_attention_heads": 128, "num_hidden_layers": 60, "num_kv_heads": 8,
            "new_decoder_architecture": True,
        },
        41_303_293_952,
    ),
    "Falcon 2 11B": (
        {
            **FALCON, "activation": "gelu", "ff_factor": 4, "ffn_hidden_size": 16384, "hidden_size": 4096,
            "max_position_embeddings": 8192, "multi_query": True, "new_decoder_architecture": True,
            "num_attention_heads": 32, "num_hidden_layers": 60, "num_kv_heads": 8, "num_ln_in_parallel_attn": 1,
            "rope_scaling": None, "rope_theta": 5000042.0, "tie_word_embeddings": False,
        },
        11_102_822_400,
    ),
    "Falcon RW 1B": (
        {
            **FALCON, "alibi": True, "bias": True, "hidden_size": 2048, "num_attention_heads": 32, "vocab_size": 50304,
            "num_hidden_layers": 24, "multi_query": False, "new_decoder_architecture": False, "parallel_attn": False,
            "bos_token_id": 1, "eos_token_id": 2,
        },
        1_311_625_216,
    ),
    "GPT-OSS 20B, dequantized": (
        {
            **PLAIN, "model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "attention_bias": True,
            "eos_token_id": 200002, "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880,
            "initial_context_length": 4096, "intermediate_size": 2880, "max_position_embeddings": 131072,
            "layer_types": ["sliding_attention", "full_attention"] * 12, "num_attention_heads": 64,
            "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 8, "num_local_experts": 32,
            "output_router_logits": False, "pad_token_id": 199999, "rms_norm_eps": 1e-05, "rope_theta": 150000,
            "rope_scaling": {
                "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
                "rope_type": "yarn", "truncate": False,
            },
            "router_aux_loss_coef": 0.9, "sliding_window": 128, "swiglu_limit": 7.0, "tie_word_embeddings": False,
            "vocab_size": 201088,
        },
        20_914_757_184,
    ),
    "DeepSeek-V2-Lite": (
        {
            **PLAIN, "model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"], "attention_bias": False,
            "aux_loss_alpha": 0.001, "bos_token_id": 100000, "eos_token_id": 100001, "ep_size": 1, "seq_aux": True,
            "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 10944,
            "kv_lora_rank": 512, "max_position_embeddings": 163840, "moe_intermediate_size": 1408, "moe_layer_freq": 1,
            "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2, "norm_topk_prob": False, "q_lora_rank": None,
            "num_attention_heads": 16, "num_experts_per_tok": 6, "num_hidden_layers": 27, "num_key_value_heads": 16,
            "pretraining_tp": 1, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
            "rope_scaling": {
                "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
                "original_max_position_embeddings": 4096, "type": "yarn",
            },
            "rope_theta": 10000, "routed_scaling_factor": 1.0, "scoring_func": "softmax", "tie_word_embeddings": False,
            "topk_group": 1, "topk_method": "greedy", "v_head_dim": 128, "vocab_size": 102400,
        },
        15_706_484_224,
    ),
    "SmolLM3 3B": (
        {
            **PLAIN, "model_type": "smollm3", "architectures": ["SmolLM3ForCausalLM"], "attention_bias": False,
            "bos_token_id": None, "eos_token_id": 128012, "hidden_act": "silu", "hidden_size": 2048,
            "intermediate_size": 11008, "max_position_embeddings": 65536, "max_window_layers": 28, "mlp_bias": False,
            "layer_types": ["full_attention"] * 36, "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9,
            "num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 4, "pad_token_id": 128004,
            "pretraining_tp": 2, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 5000000.0,
            "sliding_window": None, "use_sliding_window": False, "vocab_size": 128256, "tie_word_embeddings": True,
        },
        3_075_098_624,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "count"), RELEASED.values(), ids=RELEASED)
def test_a_released_model_has_its_published_number_of_parameters(fields, count):
    model = model_of(values_of(fields))
    assert sum(parameter.numel() for parameter in model.parameters()) == count
