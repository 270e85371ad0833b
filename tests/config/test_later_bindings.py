"""The promise of a saved configuration: one more binding on it means what it means on the files that it came from."""

import pytest
import torch
from drawn_bindings import bindings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from later_bindings import (
    LEFT_OUT,
    MIXERS,
    RECIPES,
    STEPS,
    TRAINING,
    assert_promise,
    bound,
    initial_weights,
    loaded,
    meaning,
)

import ml
from ml.config import ConfigError
from ml.runs.run import is_part_of_a_model

TINY = "tiny"
PAIRS = [(old, new) for old in MIXERS for new in MIXERS if old != new]


def swap(mixer: str) -> str:
    """The statements that put a mixer in place with its options."""
    return "\n".join([f"DecoderBlock.mixer = @{mixer}", *MIXERS[mixer]])


@pytest.mark.parametrize(("old", "new"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_any_mixer_takes_the_place_of_any_other_in_a_saved_run(old, new):
    chained = assert_promise(TINY, [swap(old), swap(new)])
    ours, theirs = initial_weights(loaded(TINY, [swap(old), swap(new)])), initial_weights(chained)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


SINGLE = [
    "Linear.bias = True",
    "query/Linear.bias = True",
    "block_0_to_0/Linear.bias = True",
    "Attention.rotary = None",
    "Attention.attention_sinks = True",
    "Attention.query_norm = @LayerNorm",
    "DecoderBlock.normalization = @LayerNorm",
    "block_1/DecoderBlock.normalization = @LayerNorm",
    "DecoderBlock.mlp = None",
    "DecoderBlock.mlp = @MLP",
    "DecoderBlock.mlp = @MixtureOfExperts",
    "block_1/DecoderBlock.mixer = @Mamba2\nMamba2.head_size = 16",
    "DecoderBlock.mixer_output_norm = @LayerNorm",
    "Linear.apply_peft = @LoRA\nLoRA.rank = 2",
    "LanguageModel.multi_token = @MultiTokenPrediction",
    "Embeddings.position = @PositionEmbedding\nPositionEmbedding.num_positions = 512",
    "Parameter.weight_decay = 0.5",
    "weight/Parameter.weight_decay = 0.5",
    "Parameter.initialization = @zeros",
    "Linear.weight_initialization = @ones",
    "normal.std = 0.5",
    "weight/normal.std = 0.5",
    "optimizer/AdamW.learning_rate = 0.5",
    "Trainer.optimizer = @Lion",
    "Trainer.optimizer = @CombinedOptimizer",
    "Trainer.schedule = @PhasedSchedule",
    "Trainer.skip_step = @SkipStep",
    "Trainer.weight_average = @ExponentialMovingAverage",
    "Trainer.validation = {'books': @Validation, 'code': @Validation}",
    "Trainer.data = @TokenFiles\nTokenFiles.paths = 'somewhere'",
]


# Recipes that differ in kind meet every binding, the others every third one.
KINDS = ("tiny", "gemma3_1b", "mamba2_1.3b", "deepseek_v3_16b", "vision_language")
ON_RECIPES = [
    (recipe, binding)
    for row, recipe in enumerate(RECIPES)
    for column, binding in enumerate(SINGLE)
    if recipe in KINDS or (row + column) % 3 == 0
]


@pytest.mark.parametrize(("recipe", "binding"), ON_RECIPES)
def test_one_binding_on_a_saved_recipe_is_the_binding_on_its_files(recipe, binding):
    assert_promise(recipe, [binding])


@pytest.mark.slow
@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_bindings_on_a_saved_recipe_mean_what_they_mean_on_its_files(data):
    recipe = data.draw(st.sampled_from(list(RECIPES)), label="recipe")
    assert_promise(recipe, data.draw(st.lists(bindings(recipe), min_size=1, max_size=3), label="bindings"))


def test_a_run_saved_ten_times_with_a_binding_each_is_the_files_with_all_ten():
    ten = [
        "Linear.bias = True",
        "DecoderBlock.mixer = @Mamba",
        "DecoderBlock.normalization = @LayerNorm",
        swap("Mamba2"),
        "block_1/DecoderBlock.mixer = @GatedDeltaNet",
        "GatedDeltaNet.num_heads = 2",
        "Linear.apply_peft = @LoRA\nLoRA.rank = 2",
        "DecoderBlock.mlp = @MixtureOfExperts\nMixtureOfExperts.num_experts = 4",
        "LayerNorm.bias = False",
        "Trainer.optimizer = @Lion",
    ]
    assert isinstance(assert_promise(TINY, ten), ml.Config)


def test_new_biases_of_a_saved_run_have_no_weight_decay():
    found = meaning(assert_promise(TINY, ["Linear.bias = True"])).values
    biases = {path: v for (path, _, name), v in found.items() if name == "weight_decay" and path.endswith("/bias")}
    assert len(biases) == 14
    assert set(biases.values()) == {"0.0"}


@pytest.mark.parametrize(
    "binding",
    [
        "Linear.apply_peft = @LoRA\nLoRA.rank = 2",
        "Linear.bias = True",
        "DecoderBlock.mixer = @Mamba",
        "DecoderBlock.normalization = @LayerNorm",
        "Linear.weight_initialization = @ones",
    ],
)
@pytest.mark.parametrize("mixer", ["Attention", "Mamba2", "GatedDeltaNet"])
def test_a_model_to_start_from_hands_its_defaults_down_as_defaults(mixer, binding):
    """The run that the weights come from was saved and loaded; its files would have imported the same."""
    options = MIXERS[mixer]
    source = ml.load("recipes/tiny.gin", [f"DecoderBlock.mixer = @{mixer}", *options])
    saved = ml.load(bindings=[source.operative])
    imported = [values.as_imported(is_part_of_a_model, "source") for values in (source, saved)]
    direct, through = (ml.load(TRAINING, [*STEPS, binding], imported=values) for values in imported)
    assert meaning(direct) == meaning(through)
    again = bound(ml.load(TRAINING, STEPS, imported=imported[1]), binding)
    assert meaning(again) == meaning(direct)
    sources = {(r.configurable, r.parameter): r.source for r in through.records() if r.path.startswith("decoder")}
    assert sources["DecoderBlock", "dropout"] == "default"
    assert sources["DecoderBlock", "mlp"] == "imported"


def test_an_omitted_option_of_a_saved_run_is_an_error_where_it_is_needed_and_never_another_value():
    there_and_back = ["GatedMLP.activation = @relu", "DecoderBlock.mlp = @MLP", "DecoderBlock.mlp = @GatedMLP"]
    direct = meaning(loaded(TINY, there_and_back))
    assert direct.values["decoder/block_0/mlp", "GatedMLP", "activation"] == "@relu"
    error = assert_promise(TINY, there_and_back)
    assert isinstance(error, ConfigError)
    missed = [problem for problem in error.problems if problem.message.startswith("GatedMLP.activation")]
    assert [problem.message for problem in missed] == [
        f"GatedMLP.activation must be set: {LEFT_OUT}, which had no effect there (at decoder/block_0_to_1/mlp)"
    ]
    options = ["GatedMLP.activation = @relu", "GatedMLP.intermediate_size = 192", "gate/Linear.bias = True"]
    saved = loaded(TINY, there_and_back[:2])
    assert isinstance(bound(saved, "\n".join([there_and_back[2], *options])), ml.Config)


def test_runs_that_differ_in_options_without_effect_have_one_fingerprint():
    plain = ["DecoderBlock.mlp = @MLP", "MLP.intermediate_size = 64"]
    one, other = loaded(TINY, plain), loaded(TINY, ["gate/Linear.bias = True", *plain])
    assert "\nGatedMLP.intermediate_size = %juniper.left_out\n" in one.operative
    assert one.operative != other.operative
    assert one.fingerprint == other.fingerprint
    assert one == other
