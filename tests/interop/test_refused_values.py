"""Values of known fields that a family cannot express: an error that names the field."""

import json

import pytest
import transformers

from ml.interop.errors import InteropError
from ml.interop.importing import values_of

SLIDING = ["sliding_attention"]
CASES = {
    "windows that are not used": ("qwen2", {"layer_types": SLIDING * 32}, "layer_types has windows"),
    "windows without a size": (
        "qwen2",
        {"layer_types": SLIDING * 32, "use_sliding_window": True, "sliding_window": None},
        "layer_types has windows",
    ),
    "windows of experts": ("qwen2_moe", {"layer_types": SLIDING * 24}, "layer_types has windows"),
    "one window without a size": ("qwen3_moe", {"use_sliding_window": True}, "sliding_window is null"),
    "windows of SmolLM3": ("smollm3", {"layer_types": SLIDING * 36}, "layer_types has windows"),
    "Falcon, one after the other": (
        "falcon",
        {"new_decoder_architecture": True, "parallel_attn": False},
        "no Falcon combines: new_decoder_architecture = True",
    ),
    "Falcon 7B with two norms": ("falcon", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn = 2"),
    "Falcon RW with few keys": ("falcon", {"multi_query": False, "num_kv_heads": 1}, "num_kv_heads = 1"),
    "norms after the residual": (
        "falcon",
        {"apply_residual_connection_post_layernorm": True},
        "apply_residual_connection_post_layernorm is True",
    ),
    "unknown choice of experts": ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc'"),
    "groups without a number": ("deepseek_v2", {"topk_method": "group_limited_greedy"}, "n_group must be a positive"),
    "normalized weights": ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob is True"),
    "negative number of dense blocks": ("deepseek_v3", {"first_k_dense_replace": -1}, "first_k_dense_replace must be"),
    "another gate": ("gpt_oss", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "heads that do not fit": ("mamba2", {"num_heads": 5}, "expand makes 8192 channels"),
}


@pytest.mark.parametrize(("kind", "changes", "message"), CASES.values(), ids=CASES)
def test_a_value_that_a_family_cannot_express_is_refused(kind, changes, message):
    needed = {"num_experts_per_tok": 6} if kind == "deepseek_v2" else {}
    config = json.loads(transformers.AutoConfig.for_model(kind, **needed).to_json_string(use_diff=False))
    values_of(config)
    with pytest.raises(InteropError, match=message):
        values_of({**config, **changes})
