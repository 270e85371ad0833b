"""Configurations as released checkpoints spell them, which transformers writes in another way."""

import json

import pytest
import torch
from hub_cases import CASES
from hub_models import imported, oracle_of, saved
from safetensors.torch import load_file, save_file

from ml.distributed.shards import Shard
from ml.interop.comparison import describe
from ml.interop.errors import InteropError
from ml.interop.expressing import express, model_of
from ml.interop.importing import values_of
from ml.interop.reading import share_in_shard

# By name: the case of the same model, the fields that take the place of others, and those that are gone (`...`).
SPELLINGS = {
    "LFM2": (
        "LFM2, odd, biases, by indices",
        {
            "layer_types": ...,
            "tie_word_embeddings": ...,
            "tie_embedding": True,
            "intermediate_size": ...,
            "block_ff_dim": 56,
            "rope_parameters": ...,
            "rope_theta": 1e6,
            "block_use_swiglu": True,
            "conv_dim": 36,
        },
    ),
    "Granite 4": (
        "Granite 4",
        {
            "layer_types": ["mamba", "attention"],
            "position_embedding_type": "nope",
            "mamba_d_head": "auto",
            "rope_parameters": ...,
            "rope_theta": 10000.0,
        },
    ),
    "Nemotron-H": (
        "Nemotron-H",
        {
            "layers_block_type": ...,
            "hybrid_override_pattern": "ME*-",
            "num_hidden_layers": 4,
            "n_groups": ...,
            "mamba_n_groups": 2,
            "auto_map": {"AutoModelForCausalLM": "code.Model"},
        },
    ),
    "Kimi Linear": (
        "Kimi Linear, odd, groups",
        {
            "layer_types": ...,
            "linear_head_dim": ...,
            "linear_num_heads": ...,
            "linear_conv_kernel_dim": ...,
            "linear_attn_config": {
                "full_attn_layers": [1],
                "kda_layers": [2, 3],
                "head_dim": 6,
                "num_heads": 3,
                "short_conv_kernel_size": 3,
            },
            "moe_router_activation_func": "sigmoid",
            "mla_use_nope": True,
            "auto_map": {"AutoModelForCausalLM": "code.Model"},
        },
    ),
}


def spelled(case: str, changes: dict) -> tuple[dict, dict]:
    """Returns a config.json of transformers, and the one with changed fields."""
    config = json.loads(oracle_of(*CASES[case]).config.to_json_string())
    return config, {name: value for name, value in {**config, **changes}.items() if value is not ...}


@pytest.mark.parametrize(("case", "changes"), SPELLINGS.values(), ids=SPELLINGS)
def test_a_released_spelling_is_the_same_model(case, changes):
    config, released = spelled(case, changes)
    model = model_of(values_of(released))
    assert describe(model, of_training=True) == describe(model_of(values_of(config)), of_training=True)
    written = express(model, released).config
    assert written == {name: value for name, value in released.items() if name != "auto_map"} | (
        {"num_nextn_predict_layers": 0} if "num_nextn_predict_layers" in written else {}
    )


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("LFM2", {"tie_embedding": True}, "both tie_word_embeddings and tie_embedding"),
        ("LFM2, odd, biases, by indices", {"layer_types": ..., "full_attn_idxs": [3]}, "indices of the 3 blocks"),
        ("Granite 4", {"position_embedding_type": "learned"}, "rope, nope and null"),
        ("Jamba", {"attn_layer_offset": 2}, "an index in 2 blocks"),
        ("Bamba", {"mamba_n_heads": 9}, "81 channels|80 channels"),
        ("Nemotron-H", {"layers_block_type": ["linear_attention", "mamba3"]}, "must be of the kinds"),
        (
            "Kimi Linear",
            {"layer_types": ..., "linear_attn_config": {"full_attn_layers": [1], "kda_layers": [1]}},
            "once",
        ),
        ("Kimi Linear", {"mlp_layer_types": ["dense"]}, "2 times dense or sparse"),
    ],
)
def test_blocks_that_contradict_each_other_are_refused(case, changes, message):
    with pytest.raises(InteropError, match=message):
        values_of(spelled(case, changes)[1])


@pytest.mark.parametrize("start", range(0, 12, 2))
@pytest.mark.parametrize("size", [1, 4, 7])
def test_shares_of_rows_fill_a_shard_of_any_rows_and_columns(start, size):
    whole = torch.arange(12 * 4).view(12, 4)
    shard = Shard((start, 1), (min(size, 12 - start), 2))
    mine = torch.full(shard.sizes, -1)
    for index, piece in enumerate(whole.split(4)):
        place, rows = share_in_shard(shard, index, 4)
        place.of(mine).copy_(rows.of(piece))
    assert torch.equal(mine, shard.of(whole))


def test_dense_blocks_of_kimi_are_read_below_both_names(tmp_path):
    """Released checkpoints name them `mlp`, and transformers writes them as `block_sparse_moe`."""
    folder = saved(oracle_of(*CASES["Kimi Linear"]), tmp_path)
    first = imported(folder)
    file = folder / "model.safetensors"
    names = {name: name.replace(".mlp.", ".block_sparse_moe.") for name in load_file(file)}
    assert any(name != other for name, other in names.items())
    save_file({names[name]: tensor for name, tensor in load_file(file).items()}, file)
    for one, other in zip(first.parameters(), imported(folder).parameters(), strict=True):
        assert torch.equal(one, other)
