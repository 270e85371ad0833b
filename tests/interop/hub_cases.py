"""Models of every family in odd shapes: the name in transformers, and the settings that differ from `SIZES`."""

ODD = {"hidden_size": 36, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 10, "num_hidden_layers": 3}
FAST = {"rope_theta": 100.0}  # so that a few positions rotate all pairs
YARN = {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
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
    "Llama, YaRN": ("Llama", {"rope_parameters": {**FAST, **YARN}}),
    "Llama, YaRN by hand": (
        "Llama",
        {"rope_parameters": {**FAST, **YARN, "attention_factor": 1.3, "beta_fast": 5.0, "truncate": False}},
    ),
}
