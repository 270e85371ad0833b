"""Swapping a mixer onto a shipped model changes nothing of the mixer but the biases of bias-free models."""

import pytest
import torch

import ml
from ml.config import load
from ml.layers.parameter import named_settings
from ml.models import LanguageModel

SIZES = """
LanguageModel.vocab_size = 64
LanguageModel.hidden_size = 32
decoder/Repeat.num_blocks = 2
DecoderBlock.mixer = @{0}
"""
MIXERS = ["Mamba", "Mamba2", "GatedDeltaNet", "KimiDeltaAttention", "ShortConvolutionMixer"]


def settings_of_mixer(files: list[str], bindings: str) -> dict[str, str]:
    with torch.device("meta"):
        model = load(files, [bindings], root=LanguageModel, shipped=ml.SHIPPED_CONFIGS).build(LanguageModel)
    return {name: str(found) for name, _, found in named_settings(model.decoder.block_0.mixer)}


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("model", ["llama", "gpt2", "mamba2"])
def test_a_swapped_mixer_keeps_its_initializations_and_gets_no_second_bias(model, mixer):
    found = settings_of_mixer([f"models/{model}.gin"], SIZES.format(mixer))
    own = settings_of_mixer([], SIZES.format(mixer))
    assert found.keys() <= own.keys()
    removed = own.keys() - found.keys()
    assert all(name.endswith(".bias") for name in removed)
    assert bool(removed) is (model != "gpt2")  # models without biases
    changed = {name for name in found if found[name] != own[name]}
    assert changed <= {"output.weight"}  # scaled by the depth
