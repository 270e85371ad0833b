"""Models of every family in odd shapes: the name in transformers, and the settings that differ from `SIZES`."""

ODD = {"hidden_size": 36, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 10, "num_hidden_layers": 3}
FAST = {"rope_theta": 100.0}  # so that a few positions rotate all pairs
YARN = {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
NO_DROPOUT = {"attention_dropout": 0.0}
GPT2 = {
    **dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"), ...),
    **dict.fromkeys(("num_key_value_heads", "head_dim", "intermediate_size", "tie_word_embeddings"), ...),
    "n_positions": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
GEMMA = {"query_pre_attn_scalar": 7, "sliding_window": 5, "tie_word_embeddings": True}
QWEN_MOE = {"moe_intermediate_size": 24, "num_experts_per_tok": 2}
WHOLE = {"head_dim": ...}  # the width divided by the number of heads
GRANITE = {
    "embedding_multiplier": 3.0, "logits_scaling": 1.5, "residual_multiplier": 0.3, "attention_multiplier": 0.2,
}  # fmt: skip
NEOX = {"head_dim": ..., "num_key_value_heads": ...}
ATTENTION = ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "max_position_embeddings")
MAMBA = {**dict.fromkeys(ATTENTION, ...), "state_size": 5}
MAMBA_2 = {**dict.fromkeys(ATTENTION, ...), "state_size": 6, "chunk_size": 5}
DEEPSEEK = {
    "num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6,
    "v_head_dim": 5, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "head_dim": 4,
    "moe_intermediate_size": 20, "first_k_dense_replace": 1, "n_shared_experts": 2, "routed_scaling_factor": 1.5,
    "num_nextn_predict_layers": 0,
}  # fmt: skip
FALCON = dict.fromkeys(("head_dim", "num_key_value_heads", "intermediate_size", "tie_word_embeddings"), ...)
DEEPSEEK_V2 = {
    **{name: value for name, value in DEEPSEEK.items() if name not in ("n_group", "topk_group")},
    "head_dim": ..., "num_nextn_predict_layers": ...,
}  # fmt: skip
GPT_OSS = {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 5, "swiglu_limit": 0.5}
NEXT = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6, "linear_value_head_dim": 5,
    "moe_intermediate_size": 24, "shared_expert_intermediate_size": 28, "num_experts": 5, "num_experts_per_tok": 2,
}  # fmt: skip
HYBRID = {
    **WHOLE, "mamba_n_heads": 10, "mamba_d_state": 6, "mamba_n_groups": 2, "mamba_chunk_size": 5,
}  # fmt: skip
ODD_HYBRID = {**ODD, **WHOLE, "mamba_n_heads": 6, "mamba_d_state": 5, "mamba_n_groups": 3, "mamba_chunk_size": 7}
# transformers clamps time steps at `time_step_min` in a pass over many tokens, and not in decoding.
NEMOTRON = {"num_hidden_layers": ..., "time_step_min": 1e-30}
KIMI = {
    **WHOLE, "num_key_value_heads": 4, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6,
    "v_head_dim": 5, "linear_head_dim": 6, "linear_num_heads": 3, "num_local_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
}  # fmt: skip

CASES: dict[str, tuple[str, dict]] = {
    "Llama": ("Llama", {"rope_parameters": {"rope_type": "default", **FAST}}),
    "Llama, odd, biases, tied": (
        "Llama",
        {**ODD, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "rms_norm_eps": 1e-3},
    ),
    "Llama, one key": ("Llama", {"num_key_value_heads": 1, "head_dim": 10, "hidden_act": "gelu_pytorch_tanh"}),
    "Llama, linear": ("Llama", {"rope_parameters": {**FAST, "rope_type": "linear", "factor": 3.0}}),
    "Llama, Llama 3": ("Llama", {"rope_parameters": {**FAST, **LLAMA3}}),
    "Llama, dynamic": (
        "Llama",
        {"max_position_embeddings": 12, "rope_parameters": {**FAST, "rope_type": "dynamic", "factor": 2.0}},
    ),
    "Llama, YaRN": ("Llama", {"rope_parameters": {**FAST, **YARN}}),
    "Llama, YaRN by hand": (
        "Llama",
        {"rope_parameters": {**FAST, **YARN, "attention_factor": 1.3, "beta_fast": 5.0, "truncate": False}},
    ),
    "Qwen 2": ("Qwen2", {"rope_parameters": {"rope_type": "default", **FAST}}),
    "Qwen 2, odd, tied, windows": (
        "Qwen2",
        {
            **ODD,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 2,
        },
    ),
    "Qwen 3": ("Qwen3", {"rope_parameters": {"rope_type": "default", **FAST}}),
    "Qwen 3, odd, biases": ("Qwen3", {**ODD, "attention_bias": True, "rope_parameters": {**FAST, **YARN}}),
    "Mistral": ("Mistral", {"sliding_window": 6}),
    "Mistral, odd, no window": ("Mistral", {**ODD, "sliding_window": None}),
    "Mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2, "router_jitter_noise": 0.0}),
    "Mixtral, odd, window, loss": (
        "Mixtral",
        {**ODD, "num_local_experts": 4, "num_experts_per_tok": 3, "sliding_window": 4, "output_router_logits": True},
    ),
    "Seed-OSS": ("SeedOss", {**NO_DROPOUT, "residual_dropout": 0.0}),
    "Seed-OSS, odd": ("SeedOss", {**ODD, **NO_DROPOUT, "residual_dropout": 0.0, "attention_out_bias": True}),
    "Arcee": ("Arcee", {"mlp_bias": True}),
    "Arcee, odd, tied": (
        "Arcee",
        {**ODD, "attention_bias": True, "tie_word_embeddings": True, "rope_parameters": {**FAST, **YARN}},
    ),
    "Helium": ("Helium", {"head_dim": 10, "rope_parameters": {"rope_type": "default", **FAST}}),
    "Helium, odd, biases": ("Helium", {**ODD, "head_dim": 6, "attention_bias": True, "mlp_bias": True}),
    "GPT-2": ("GPT2", {**GPT2, "n_embd": 40, "n_layer": 2, "n_head": 4}),
    "GPT-2, odd, untied": (
        "GPT2",
        {**GPT2, "n_embd": 36, "n_layer": 3, "n_head": 3, "n_inner": 50, "tie_word_embeddings": False},
    ),
    "Gemma 1": ("Gemma", {"tie_word_embeddings": True, "hidden_act": "gelu"}),
    "Gemma 1, odd, untied, biases": (
        "Gemma",
        {**ODD, "attention_bias": True, "rms_norm_eps": 1e-3, "rope_parameters": {**FAST, **LLAMA3}},
    ),
    "Gemma 2": ("Gemma2", {**GEMMA, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 3.0}),
    "Gemma 2, odd, full": (
        "Gemma2",
        {**ODD, **GEMMA, "layer_types": ["full_attention"] * 3, "attn_logit_softcapping": None, "attention_bias": True},
    ),
    "Gemma 3": (
        "Gemma3",
        {
            **GEMMA,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
            },
        },
    ),
    "Gemma 3, odd, one kind": ("Gemma3", {**ODD, **GEMMA, "layer_types": ["sliding_attention"] * 3}),
    "Qwen 2-MoE": ("Qwen2Moe", {**QWEN_MOE, "shared_expert_intermediate_size": 28, "num_experts": 5}),
    "Qwen 2-MoE, odd, some dense": (
        "Qwen2Moe",
        {
            **ODD,
            **QWEN_MOE,
            "shared_expert_intermediate_size": 28,
            "num_experts": 4,
            "decoder_sparse_step": 2,
            "norm_topk_prob": True,
            "qkv_bias": False,
        },
    ),
    "Qwen 2-MoE, windows, some dense": (
        "Qwen2Moe",
        {
            **QWEN_MOE,
            "num_hidden_layers": 5,
            "shared_expert_intermediate_size": 28,
            "num_experts": 4,
            "mlp_only_layers": [2, 3],
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 4,
        },
    ),
    "Qwen 3-MoE": ("Qwen3Moe", {**QWEN_MOE, "num_local_experts": 5}),
    "Qwen 3-MoE, window": (
        "Qwen3Moe",
        {**QWEN_MOE, "num_local_experts": 4, "use_sliding_window": True, "sliding_window": 5},
    ),
    "Qwen 3-MoE, odd, some dense": (
        "Qwen3Moe",
        {**ODD, **QWEN_MOE, "num_local_experts": 4, "mlp_only_layers": [1], "norm_topk_prob": True},
    ),
    "Phi-3": ("Phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}}),
    "Phi-3, odd, window": ("Phi3", {**ODD, "sliding_window": 5}),
    "OLMo 2": ("Olmo2", {**WHOLE, "rope_parameters": {"rope_type": "default", **FAST}}),
    "OLMo 2, odd, biases": ("Olmo2", {**ODD, **WHOLE, "attention_bias": True}),
    "OLMoE": ("Olmoe", {**WHOLE, "num_experts": 5, "num_experts_per_tok": 2}),
    "OLMoE, odd": ("Olmoe", {**ODD, **WHOLE, "num_experts": 4, "num_experts_per_tok": 3, "norm_topk_prob": True}),
    "Granite": ("Granite", {**GRANITE, "attention_bias": True}),
    "Granite, odd, tied": ("Granite", {**ODD, **GRANITE, "mlp_bias": True, "tie_word_embeddings": True}),
    "StarCoder 2": ("Starcoder2", {"sliding_window": 5}),
    "StarCoder 2, odd, no biases": ("Starcoder2", {**ODD, **WHOLE, "use_bias": False, "tie_word_embeddings": True}),
    "GLM-4": ("Glm4", {"rope_parameters": {**FAST, "rope_type": "default", "partial_rotary_factor": 0.5}}),
    "GLM-4, odd": ("Glm4", {**ODD, "head_dim": 8, "attention_bias": False}),
    "SmolLM3": ("SmolLM3", {"no_rope_layers": [1, 0]}),
    "SmolLM3, odd, all rotated": ("SmolLM3", {**ODD, "no_rope_layers": [1, 1, 1], "attention_bias": True}),
    "SmolLM3, windows": (
        "SmolLM3",
        {"num_hidden_layers": 3, "no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 5},
    ),
    "SmolLM3, windows in some of each": (
        "SmolLM3",
        {
            "num_hidden_layers": 4,
            "no_rope_layers": [1, 0, 1, 0],
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "full_attention"],
            "use_sliding_window": True,
            "sliding_window": 4,
            "rope_parameters": {"rope_type": "default", **FAST},
        },
    ),
    "GPT-NeoX": (
        "GPTNeoX",
        {**NEOX, "rope_parameters": {**FAST, "rope_type": "default", "partial_rotary_factor": 0.6}},
    ),
    "GPT-NeoX, odd, one after the other": (
        "GPTNeoX",
        {**NEOX, "hidden_size": 48, "num_attention_heads": 6, "use_parallel_residual": False, "attention_bias": False},
    ),
    "Phi-2": ("Phi", {**WHOLE, "rope_parameters": {**FAST, "rope_type": "default", "partial_rotary_factor": 0.4}}),
    "Phi-2, odd": ("Phi", {**ODD, "num_key_value_heads": 6, "head_dim": ..., "hidden_size": 48}),
    "Cohere": ("Cohere", {**WHOLE, "logit_scale": 0.5}),
    "Cohere, odd, biases": (
        "Cohere",
        {**ODD, "head_dim": ..., "attention_bias": True, "tie_word_embeddings": True},
    ),
    "Phi-3, long": (
        "Phi3",
        {
            "head_dim": 8,
            "hidden_size": 32,
            "original_max_position_embeddings": 8,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 100.0,
                "long_factor": [1.0, 1.5, 2.0, 4.0],
                "short_factor": [1.0, 1.1, 1.2, 1.3],
            },
        },
    ),
    "Mamba": ("Mamba", {**MAMBA, "time_step_rank": 3, "conv_kernel": 3}),
    "Mamba, odd, biases, tied": (
        "Mamba",
        {
            **MAMBA,
            "hidden_size": 36,
            "num_hidden_layers": 3,
            "expand": 3,
            "use_bias": True,
            "use_conv_bias": False,
            "tie_word_embeddings": True,
        },
    ),
    "Falcon 7B": ("Falcon", {**FALCON, "rope_parameters": {"rope_type": "default", **FAST}}),
    "Falcon 40B, biases": (
        "Falcon",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "bias": True, "ffn_hidden_size": 56},
    ),
    "Falcon 11B, odd, untied, one norm": (
        "Falcon",
        {
            **FALCON,
            "hidden_size": 36,
            "num_attention_heads": 6,
            "num_hidden_layers": 3,
            "new_decoder_architecture": True,
            "num_kv_heads": 3,
            "num_ln_in_parallel_attn": 1,
            "activation": "gelu_pytorch_tanh",
            "tie_word_embeddings": False,
            "rope_parameters": {**FAST, **YARN},
        },
    ),
    "Falcon RW, odd": (
        "Falcon",
        {
            **FALCON,
            "hidden_size": 48,
            "num_attention_heads": 12,  # slopes that bfloat16 rounds
            "alibi": True,
            "multi_query": False,
            "parallel_attn": False,
            "bias": True,
            "attn_implementation": "sdpa",  # the other one of transformers adds the biases twice
        },
    ),
    "Nemotron": ("Nemotron", {"rope_parameters": {"rope_type": "default", **FAST, "partial_rotary_factor": 0.5}}),
    "Nemotron, odd, biases, tied": (
        "Nemotron",
        {
            **ODD,
            "head_dim": 12,
            "attention_bias": True,
            "mlp_bias": True,
            "norm_eps": 1e-3,
            "tie_word_embeddings": True,
        },
    ),
    "Falcon-Mamba": ("FalconMamba", {**MAMBA, "mixer_rms_eps": 1e-3}),
    "Falcon-Mamba, odd, biases": (
        "FalconMamba",
        {
            **MAMBA,
            "hidden_size": 36,
            "num_hidden_layers": 3,
            "expand": 3,
            "time_step_rank": 5,
            "conv_kernel": 3,
            "use_bias": True,
            "use_conv_bias": False,
        },
    ),
    "Mamba-2": ("Mamba2", {**MAMBA_2, "num_heads": 10, "head_dim": 8, "n_groups": 2, "conv_kernel": 3}),
    "Mamba-2, odd, biases, limits": (
        "Mamba2",
        {
            **MAMBA_2,
            "hidden_size": 36,
            "num_heads": 6,
            "head_dim": 12,
            "n_groups": 3,
            "use_bias": True,
            "time_step_limit": [0.05, 0.6],
            "tie_word_embeddings": True,
        },
    ),
    "DeepSeek-V3": ("DeepseekV3", DEEPSEEK),
    "DeepSeek-V3, odd, whole queries, YaRN": (
        "DeepseekV3",
        {
            **DEEPSEEK,
            "hidden_size": 36,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "q_lora_rank": None,
            "num_hidden_layers": 3,
            "rope_interleave": False,
            "norm_topk_prob": False,
            "rope_parameters": {**FAST, **YARN, "mscale": 1.0, "mscale_all_dim": 0.707},
        },
    ),
    "DeepSeek-V3, biases": ("DeepseekV3", {**DEEPSEEK, "attention_bias": True}),
    "DeepSeek-V2": ("DeepseekV2", {**DEEPSEEK_V2, "attention_bias": True}),
    "DeepSeek-V2, odd, groups, whole queries, YaRN": (
        "DeepseekV2",
        {
            **DEEPSEEK_V2,
            "hidden_size": 36,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "q_lora_rank": None,
            "num_hidden_layers": 3,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "rope_parameters": {**FAST, **YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        },
    ),
    "GPT-OSS": ("GptOss", {**GPT_OSS, "rope_parameters": {**FAST, **YARN, "truncate": False}}),
    "GPT-OSS, odd, one kind": (
        "GptOss",
        {
            **ODD,
            **GPT_OSS,
            "layer_types": ["full_attention"] * 3,
            "attention_bias": False,
            "swiglu_alpha": 1.3,
            "num_experts_per_tok": 3,
            "rope_parameters": {"rope_type": "default", **FAST},
        },
    ),
    "Qwen3-Next": (
        "Qwen3Next",
        {
            **NEXT,
            "num_hidden_layers": 3,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "mlp_only_layers": [0],
            "rope_parameters": {**FAST, "rope_type": "default", "partial_rotary_factor": 0.5},
        },
    ),
    "Qwen3-Next, odd, one kind": (
        "Qwen3Next",
        {**NEXT, "hidden_size": 36, "head_dim": 16, "layer_types": ["full_attention"] * 2, "norm_topk_prob": False},
    ),
    "EXAONE 4": ("Exaone4", {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}),
    "EXAONE 4, odd, no windows": ("Exaone4", {**ODD, "sliding_window": None, "layer_types": ["full_attention"] * 3}),
    "OLMo 3": (
        "Olmo3",
        {
            **WHOLE,
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 5,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
                "full_attention": {"rope_theta": 50.0, **YARN},
            },
        },
    ),
    "OLMo 3, odd, one kind": ("Olmo3", {**ODD, **WHOLE, "layer_types": ["full_attention"] * 3}),
    "LFM2": ("Lfm2", {**WHOLE, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8}),
    "LFM2, odd, biases, by indices": (
        "Lfm2",
        {
            **ODD,
            **WHOLE,
            "full_attn_idxs": [1],
            "conv_bias": True,
            "conv_L_cache": 4,
            "block_auto_adjust_ff_dim": False,
            "tie_word_embeddings": True,
        },
    ),
    "Bamba": ("Bamba", {**HYBRID, "num_attention_heads": 5, "num_key_value_heads": 5, "attn_layer_indices": [1]}),
    "Bamba, odd, biases, limits": (
        "Bamba",
        {
            **ODD_HYBRID,
            "num_attention_heads": 3,
            "attn_layer_indices": [0, 2],
            "mamba_proj_bias": True,
            "mamba_conv_bias": False,
            "attention_bias": True,
            "mlp_bias": True,
            "time_step_limit": [0.05, 0.6],
        },
    ),
    "Granite 4": (
        "GraniteMoeHybrid",
        {
            **HYBRID,
            **GRANITE,
            "layer_types": ["linear_attention", "full_attention"],
            "num_local_experts": 3,
            "shared_intermediate_size": 28,
        },
    ),
    "Granite 4, odd, dense, rotary": (
        "GraniteMoeHybrid",
        {
            **ODD_HYBRID,
            **GRANITE,
            "layer_types": ["full_attention", "linear_attention", "full_attention"],
            "num_local_experts": 0,
            "shared_intermediate_size": 50,
            "position_embedding_type": "rope",
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mamba_proj_bias": True,
        },
    ),
    "Jamba": (
        "Jamba",
        {
            **WHOLE,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 3,
            "mamba_d_state": 5,
            "mamba_dt_rank": 3,
        },
    ),
    "Jamba, odd, biases": (
        "Jamba",
        {
            **ODD,
            **WHOLE,
            "attn_layer_period": 3,
            "attn_layer_offset": 0,
            "expert_layer_period": 2,
            "expert_layer_offset": 0,
            "num_experts": 4,
            "num_experts_per_tok": 3,
            "mamba_d_state": 4,
            "mamba_d_conv": 3,
            "mamba_expand": 3,
            "mamba_proj_bias": True,
            "mamba_conv_bias": False,
            "tie_word_embeddings": True,
        },
    ),
    "Nemotron-H": (
        "NemotronH",
        {
            **NEMOTRON,
            "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
            "ssm_state_size": 6,
            "mamba_num_heads": 10,
            "mamba_head_dim": 6,
            "n_groups": 2,
            "chunk_size": 5,
            "n_routed_experts": 4,
            "moe_intermediate_size": 20,
            "moe_shared_expert_intermediate_size": 24,
        },
    ),
    "Nemotron-H, odd, biases": (
        "NemotronH",
        {
            **ODD,
            **NEMOTRON,
            "layers_block_type": ["linear_attention", "mlp", "full_attention", "moe", "linear_attention"],
            "ssm_state_size": 5,
            "mamba_num_heads": 6,
            "mamba_head_dim": 7,
            "n_groups": 3,
            "chunk_size": 7,
            "n_routed_experts": 6,
            "num_experts_per_tok": 3,
            "n_group": 3,
            "topk_group": 2,
            "routed_scaling_factor": 2.5,
            "norm_topk_prob": False,
            "moe_intermediate_size": 20,
            "moe_shared_expert_intermediate_size": 24,
            "use_bias": True,
            "use_conv_bias": False,
            "mlp_bias": True,
            "mlp_hidden_act": "gelu",
        },
    ),
    "Kimi Linear": ("KimiLinear", {**KIMI, "layer_types": ["linear_attention", "full_attention"]}),
    "Kimi Linear, odd, groups": (
        "KimiLinear",
        {
            **KIMI,
            "hidden_size": 36,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "linear_attention", "linear_attention"],
            "mlp_layer_types": ["sparse", "dense", "sparse"],
            "q_lora_rank": 14,
            "n_shared_experts": 2,
            "num_local_experts": 6,
            "n_group": 3,
            "topk_group": 2,
            "norm_topk_prob": False,
            "attention_bias": True,
            "linear_conv_kernel_dim": 3,
        },
    ),
    "LLaVA with Pixtral": ("Llava", {"image_token_id": 60, "text_config": {}, "vision_config": {}}),
    "LLaVA with Pixtral, odd, Mistral": (
        "Llava",
        {
            "image_token_id": 60,
            "text_config": {**ODD, "model_type": "mistral", "sliding_window": 6},
            "vision_config": {
                "hidden_size": 36,
                "num_attention_heads": 3,
                "num_hidden_layers": 1,
                "hidden_act": "silu",
            },
            "projector_hidden_act": "relu",
            "multimodal_projector_bias": False,
        },
    ),
    "Falcon-H1": (
        "FalconH1",
        {
            **HYBRID,
            "mamba_d_ssm": 80,
            "embedding_multiplier": 3.0,
            "lm_head_multiplier": 0.6,
            "key_multiplier": 0.7,
            "attention_in_multiplier": 0.8,
            "attention_out_multiplier": 1.3,
            "ssm_in_multiplier": 1.2,
            "ssm_out_multiplier": 0.9,
            "ssm_multipliers": [0.9, 1.1, 0.8, 1.2, 0.7],
            "mlp_multipliers": [1.4, 0.6],
        },
    ),
    "Falcon-H1, odd, biases, norm": (
        "FalconH1",
        {
            **ODD_HYBRID,
            "mamba_d_ssm": None,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": False,
            "mamba_proj_bias": True,
            "projectors_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
            "mamba_conv_bias": False,
            "mlp_multipliers": [0.7, 1.6],
            "ssm_multipliers": [0.9, 1.1, 0.8, 1.2, 0.7],
            "tie_word_embeddings": True,
        },
    ),
}
