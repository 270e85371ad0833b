"""Bindings without effect, and swaps of parts."""

import pytest
from small_model import SMALL, build_on_meta, values

from ml.config import load


def test_a_shape_set_by_the_parent_cannot_be_bound(problems):
    (found,) = problems("Linear.in_features = 7")
    assert found.startswith("--gin_bindings[1]: Linear.in_features cannot be bound: the parent always passes it")


def test_a_binding_shadowed_everywhere_is_an_error_that_names_the_cause(problems):
    (found,) = problems("mixer/Linear.bias = True", "mlp/Linear.bias = True", "Linear.bias = False")
    assert "it is overridden everywhere by " in found
    assert "mixer/Linear.bias (--gin_bindings[1])" in found
    assert "mlp/Linear.bias (--gin_bindings[2])" in found


def test_the_later_of_two_equal_bindings_wins_without_an_error(load_model):
    config = load_model("Linear.bias = True", "Linear.bias = False")
    assert set(values(config, "Linear", "bias").values()) == {"False"}


def test_a_scope_without_the_configurable_is_an_error_that_names_its_scopes(problems):
    (found,) = problems("mlp/Attention.num_heads = 2")
    assert "no Attention is built in the scope 'mlp'; it is built at decoder/block_0_to_4/mixer" in found


def test_an_option_of_an_unselected_part_is_an_error_that_names_the_selected_one(problems):
    (found,) = problems("MLP.intermediate_size = 64")
    assert "MLP is not built: DecoderBlock.mlp = @GatedMLP (its default) selects GatedMLP instead" in found


def test_an_option_where_nothing_is_built_is_an_error(problems):
    (found,) = problems("PositionEmbedding.num_positions = 64")
    assert "PositionEmbedding is not built: Embeddings.position = None (its default) selects nothing" in found


def test_options_of_a_replaced_part_after_the_swap_are_an_error(problems):
    found = problems("DecoderBlock.mlp = @MLP", "GatedMLP.intermediate_size = 64")
    assert len(found) == 1
    assert "GatedMLP is not built: DecoderBlock.mlp = @MLP (--gin_bindings[1]) selects MLP instead" in found[0]


BASE = """
GatedMLP.intermediate_size = 96
gate/Linear.bias = False
GatedMLP.activation = @relu_squared
query/Linear.bias = False
"""
SWAPS = {
    "over the default": (BASE, "DecoderBlock.mlp = @MLP"),
    "over a binding": (f"{BASE}DecoderBlock.mlp = @GatedMLP", "DecoderBlock.mlp = @MLP"),
    "by nothing": (BASE, "DecoderBlock.mlp = None"),
    "through a macro": (f"PART = @GatedMLP\n{BASE}DecoderBlock.mlp = %PART", "PART = @MLP"),
    "through a macro that was read before": (f"PART = @GatedMLP\nDecoderBlock.mlp = %PART\n{BASE}", "PART = @MLP"),
    "of the whole block, twice": (
        f"{BASE}DecoderBlock.mlp = @GatedMLP",
        "DecoderBlock.mlp = @MLP\nMLP.activation = @relu",
    ),
}


@pytest.mark.parametrize(("base", "swap"), SWAPS.values(), ids=SWAPS)
def test_one_flag_swaps_a_part_configured_by_a_file(tmp_path, base, swap):
    (tmp_path / "base.gin").write_text(SMALL + base)
    config = load(tmp_path / "base.gin", swap, root=build_on_meta)
    assert not values(config, "GatedMLP", "intermediate_size")
    for line in ("GatedMLP.intermediate_size = 96", "gate/Linear.bias = False", "GatedMLP.activation = @relu_squared"):
        assert line not in config.operative
        assert f"# {line}" in config.text
    assert "# left out: replaced by" in config.text
    assert "query/Linear.bias = False" in config.operative


def test_a_swap_in_one_block_skips_only_options_of_that_block(load_model):
    config = load_model(
        "block_3/GatedMLP.intermediate_size = 96\nGatedMLP.intermediate_size = 64",
        "block_3/DecoderBlock.mlp = @MLP",
    )
    assert "\n# block_3/GatedMLP.intermediate_size = 96" in config.text
    assert "\nGatedMLP.intermediate_size = 64" in config.text


def test_a_scope_typo_is_not_excused_by_a_swap(tmp_path):
    (tmp_path / "base.gin").write_text(SMALL + "qeury/Linear.bias = False")
    with pytest.raises(ValueError, match="there is no scope 'qeury' in the model"):
        load(tmp_path / "base.gin", "DecoderBlock.mlp = @MLP", root=build_on_meta)


def test_fewer_blocks_do_not_excuse_bindings_of_blocks_that_are_gone(tmp_path):
    (tmp_path / "base.gin").write_text(SMALL + "block_4/Linear.bias = False")
    with pytest.raises(ValueError, match="there is no scope 'block_4' in the model"):
        load(tmp_path / "base.gin", "decoder/Repeat.num_blocks = 2", root=build_on_meta)


def test_bindings_without_effect_can_be_allowed_and_are_then_warnings(load_model):
    config = load_model("qeury/Linear.bias = False\nSIZE = 3", allow_unused_bindings=True)
    assert sorted(str(w.location) for w in config.warnings) == ["--gin_bindings[1]:1", "--gin_bindings[1]:2"]
    assert "qeury/Linear.bias = %juniper.left_out" in config.operative
    assert config.fingerprint == load_model().fingerprint


def test_other_errors_stay_errors_where_unused_bindings_are_allowed(problems):
    (found,) = problems("qeury/Linear.bias = False\nLinear.biass = True", allow_unused_bindings=True)
    assert "'biass'" in found
