"""Swapping a mixer, an MLP or a norm with one binding, everywhere or in one block."""

import re

import pytest
import torch

import ml
from ml.config.configurable import candidates, known_names

BASE = "recipes/tiny.gin"
# Parts that build others by name are excluded; a norm with a gate is used inside mixers.
NOT_ALONE = {"ParallelMixer", "StochasticMixer", "GatedRMSNorm"}


def layers_of(*modules: str) -> list[str]:
    infos = [info for name in known_names() for info in candidates(name)]
    found = [i.name for i in infos if i.selector.startswith(modules) and isinstance(i.target, type)]
    return [name for name in found if name not in NOT_ALONE]


MIXERS = layers_of("ml.layers.mixers.")
MLPS = layers_of("ml.layers.mlp.", "ml.layers.moe.")
NORMS = layers_of("ml.layers.normalization.")
SWAPS = [
    *(("mixer", "Attention", name) for name in MIXERS if name != "Attention"),
    *(("mlp", "GatedMLP", name) for name in MLPS if name not in ("GatedMLP", "MixtureOfExperts")),
    *(("normalization", "RMSNorm", name) for name in NORMS if name != "RMSNorm"),
]


def places(config: ml.Config, configurable: str) -> set[str]:
    return {record.path for record in config.records() if record.configurable == configurable}


def load(tmp_path, binding: str, way: str) -> ml.Config:
    if way == "flag":
        return ml.load(BASE, [binding])
    file = tmp_path / "mine.gin"
    file.write_text(f"include '{BASE}'\n{binding}\n")
    return ml.load(file)


@pytest.mark.parametrize("way", ["file", "flag"])
@pytest.mark.parametrize(("part", "old", "new"), SWAPS, ids=[f"{part} {new}" for part, _, new in SWAPS])
def test_one_binding_swaps_a_part_everywhere(tmp_path, way, part, old, new):
    config = load(tmp_path, f"DecoderBlock.{part} = @{new}", way)
    blocks = [module for name, module in ml.build(config).named_modules() if name.startswith("decoder.block_")]
    kinds = {type(module).__name__ for module in blocks}
    assert new in kinds
    inside = {path for path in places(config, old) if path.startswith("decoder/") and "/" in path}
    assert not {path for path in inside if path.endswith(("mixer", "mlp", "mixer_norm", "mlp_norm"))}
    if old != "RMSNorm":  # the head has one too
        kept = re.findall(rf"^(?:.*/)?{old}\.\w+ = (.*)$", config.operative, re.MULTILINE)
        assert set(kept) <= {"%juniper.left_out"}
    assert ml.load(bindings=[config.operative]).operative == config.operative


@pytest.mark.parametrize(("part", "old", "new"), SWAPS, ids=[f"{part} {new}" for part, _, new in SWAPS])
def test_one_binding_swaps_a_part_in_one_block(part, old, new):
    model = ml.build(ml.load(BASE, [f"block_1/DecoderBlock.{part} = @{new}"]))
    attribute = "mixer_norm" if part == "normalization" else part
    kinds = [type(getattr(block, attribute)).__name__ for block in model.decoder.blocks]
    assert kinds == [old, new]
    tokens = torch.arange(20).view(2, 10)
    assert model(tokens).shape == (2, 10, 256)
    model.loss(tokens, tokens).mean.backward()


def test_experts_replace_an_mlp_and_are_built_from_it():
    config = ml.load(BASE, ["DecoderBlock.mlp = @MixtureOfExperts"])
    assert places(config, "GatedMLP") == {
        f"decoder/block_{block}/mlp/experts/expert_{expert}" for block in range(2) for expert in range(8)
    }


def test_options_of_the_replaced_part_are_listed_as_skipped():
    config = ml.load(BASE, ["DecoderBlock.mixer = @Mamba2"])
    assert "Attention.num_heads" in config.text
    assert "# left out" in config.text


NOT_SELECTED = {
    "Mamba2.state_size = 8": "Mamba2 is not built: DecoderBlock.mixer = @Attention",
    "MixtureOfExperts.num_experts = 4": "MixtureOfExperts is not built: DecoderBlock.mlp = @GatedMLP",
    "LayerNorm.epsilon = 0.1": "LayerNorm is not built: DecoderBlock.normalization = @RMSNorm",
    "YarnRotary.factor = 2.0": "YarnRotary is not built: Attention.rotary = @Rotary",
    "Pattern.num_blocks = 4": "Pattern is not built: LanguageModel.decoder = @Repeat",
}


@pytest.mark.parametrize(("binding", "message"), NOT_SELECTED.items(), ids=NOT_SELECTED)
def test_an_option_of_an_unselected_part_names_the_selected_one(binding, message):
    with pytest.raises(ml.ConfigError, match=re.escape(message)):
        ml.load(BASE, [binding])


SEQUENCES = {
    "pattern": [
        "LanguageModel.decoder = @Pattern",
        "Pattern.blocks = {'a': @DecoderBlock, 'b': @DecoderBlock}",
        "Pattern.pattern = ['a', 'b']",
        "Pattern.num_blocks = 4",
    ],
    "chain": [
        "LanguageModel.decoder = @Chain",
        "Chain.sequences = {'first': @Repeat, 'second': @Repeat}",
        "Repeat.num_blocks = 4",
    ],
    "a sequence in a sequence": [
        "Repeat.num_blocks = 4",
        "decoder/Repeat.block = @inner/Repeat",
        "inner/Repeat.block = @DecoderBlock",
    ],
}


@pytest.mark.parametrize("sequence", SEQUENCES.values(), ids=SEQUENCES)
def test_blocks_are_addressed_by_index_and_range_in_every_sequence(sequence):
    bindings = [*sequence, "block_1_to_2/Attention.window_size = 5", "block_2/Attention.window_size = 6"]
    config = ml.load(BASE, bindings, allow_unused_bindings=True)
    windows = {r.path: r.value for r in config.records() if r.parameter == "window_size"}
    assert len(windows) >= 4
    for path, window in windows.items():
        numbers = [int(part[-1]) for part in path.split("/") if part.startswith("block_")]
        expected = "6" if 2 in numbers else "5" if 1 in numbers else "None"
        assert window == expected, path
