"""Options without effect because of another option: an error, unless a later source caused it."""

import re

import pytest

import ml
from ml.config import child, configurable, unused
from ml.config import load as config_load
from ml.layers.head import LanguageModelHead

BASE = "recipes/tiny.gin"
SAMPLES = "Trainer.samples = @Samples"
NORM = "@LayerNorm"

# The option, the option that disables it, and their names in the error.
CASES = {
    "mlp_norm": (f"DecoderBlock.mlp_norm = {NORM}", ["DecoderBlock.mlp = None"], []),
    "mlp_output_norm": (f"DecoderBlock.mlp_output_norm = {NORM}", ["DecoderBlock.mlp = None"], []),
    "normalization, with norms of both halves": (
        f"DecoderBlock.normalization = {NORM}",
        ["DecoderBlock.mixer_norm = @RMSNorm", "DecoderBlock.mlp_norm = @RMSNorm"],
        [],
    ),
    "normalization, of a block with a mixer alone": (
        f"DecoderBlock.normalization = {NORM}",
        ["DecoderBlock.mixer_norm = @RMSNorm", "DecoderBlock.mlp = None"],
        [],
    ),
    "the initialization of a tied head": (
        "LanguageModelHead.weight_initialization = @zeros",
        ["LanguageModel.tie_word_embeddings = True"],
        [],
    ),
    "the initialization of a bias": (
        "output/Linear.bias_initialization = @zeros",
        ["output/Linear.bias = False"],
        ["output/Linear.bias = True"],
    ),
    "the initialization of the bias of a norm": (
        "head/LayerNorm.bias_initialization = @zeros",
        ["head/LayerNorm.bias = False"],
        [f"LanguageModelHead.normalization = {NORM}"],
    ),
    "the initialization of the bias of a convolution": (
        "CausalConvolution.bias_initialization = @zeros",
        ["CausalConvolution.bias = False"],
        ["DecoderBlock.mixer = @Mamba"],
    ),
    "top_k": ("Samples.top_k = 5", ["Samples.temperature = 0.0"], [SAMPLES]),
    "top_p": ("Samples.top_p = 0.5", ["Samples.temperature = 0.0"], [SAMPLES]),
    "min_p": ("Samples.min_p = 0.5", ["Samples.temperature = 0.0"], [SAMPLES]),
    "the seed of samples": ("Samples.seed = 5", ["Samples.temperature = 0.0"], [SAMPLES]),
    "the pattern of files": ("TextFiles.pattern = '*.py'", ["TextFiles.paths = None"], ["TextFiles.paths = '.'"]),
    "the key of text": ("TextFiles.text_key = 'body'", ["TextFiles.paths = None"], ["TextFiles.paths = '.'"]),
}
every_case = pytest.mark.parametrize(("option", "because", "also"), CASES.values(), ids=CASES)


def without_effect(folder, option, because, also, order):
    lines = [option, *because] if order == "the option first" else [*because, option]
    (folder / "run.gin").write_text("\n".join([f"include '{BASE}'", *also, *lines]))
    return ml.load(folder / "run.gin")


@pytest.mark.parametrize("order", ["the option first", "the option last"])
@every_case
def test_an_option_without_effect_is_an_error_that_names_the_cause(tmp_path, option, because, also, order):
    with pytest.raises(ml.ConfigError) as caught:
        without_effect(tmp_path, option, because, also, order)
    (problem,) = caught.value.problems
    lines = (tmp_path / "run.gin").read_text().splitlines()
    assert problem.location.line == lines.index(option) + 1
    assert problem.statement == option
    name = option.split(" = ")[0].rpartition("/")[2]
    assert f"{name} has no effect where " in problem.message
    for cause in because:
        assert re.search(rf"{re.escape(cause)} \(\S*run.gin:{lines.index(cause) + 1}\)", problem.message)


@every_case
def test_a_flag_may_disable_an_option_of_a_file(tmp_path, option, because, also):
    (tmp_path / "run.gin").write_text("\n".join([f"include '{BASE}'", *also, option]))
    config = ml.load(tmp_path / "run.gin", because)
    left_out = config.text.splitlines()
    (reason,) = [left_out[i - 1] for i, line in enumerate(left_out) if line.startswith(f"# {option}")]
    assert re.fullmatch(
        rf"# left out: replaced by ({'|'.join(map(re.escape, because))}) \(--gin_bindings\[\d\]\)", reason
    )
    assert f"{option}\n" not in config.operative
    (tmp_path / "saved.gin").write_text(config.operative)
    assert ml.load(tmp_path / "saved.gin").operative == config.operative


@every_case
def test_a_flag_with_a_disabled_option_is_an_error(tmp_path, option, because, also):
    (tmp_path / "run.gin").write_text("\n".join([f"include '{BASE}'", *also, *because]))
    with pytest.raises(ml.ConfigError, match="has no effect where"):
        ml.load(tmp_path / "run.gin", option)


@every_case
def test_an_option_with_an_effect_somewhere_is_valid(tmp_path, option, because, also):
    (tmp_path / "run.gin").write_text("\n".join([f"include '{BASE}'", *also, option]))
    assert f"{option}\n" in ml.load(tmp_path / "run.gin").operative


def test_an_option_with_an_effect_in_one_block_is_valid():
    config = ml.load(BASE, ["DecoderBlock.mlp_norm = @LayerNorm", "block_1/DecoderBlock.mlp = None"])
    assert "left out: replaced by block_1/DecoderBlock.mlp" not in config.text.partition("LayerNorm")[0]
    assert "DecoderBlock.mlp_norm = @LayerNorm\n" in config.operative


def test_a_default_that_disables_an_option_is_named():
    bindings = ["DecoderBlock.mixer = @Attention", "Linear.bias_initialization = @zeros"]
    with pytest.raises(ml.ConfigError, match=r"no effect where Linear\.bias = False"):
        ml.load(BASE, bindings)
    with pytest.raises(
        ml.ConfigError, match=r"PantryShelf\.books has no effect where PantryShelf\.is_open = False \(its default\)"
    ):
        config_load((), "PantryShelf.books = 3", root=PantryShelf)


@configurable
class OwnModel:
    def __init__(self):
        child("head", LanguageModelHead, 8, 16, True)


def test_an_option_disabled_by_a_parent_is_an_error_too():
    with pytest.raises(
        ml.ConfigError, match="weight_initialization has no effect where the parent determines tie_word_emb"
    ):
        config_load((), "LanguageModelHead.weight_initialization = @zeros", root=OwnModel)


@configurable
class PantryShelf:
    def __init__(self, *, is_open: bool = False, books: int = 1):
        unused(not is_open, "books", "is_open")


@pytest.mark.parametrize("recipe", ["recipes/gemma3_1b.gin"])
def test_one_flag_removes_the_mlp_of_a_shipped_model(recipe, tmp_path):
    config = ml.load(recipe, ["DecoderBlock.mlp = None", "TokenFiles.paths = 'tokens'"])
    assert "# DecoderBlock.mlp_output_norm = @RMSNorm" in config.text
    (tmp_path / "saved.gin").write_text(config.operative)
    assert ml.load(tmp_path / "saved.gin").operative == config.operative
    with pytest.raises(ml.ConfigError, match="mlp_output_norm must be set: the saved run left out its value"):
        ml.load(tmp_path / "saved.gin", "DecoderBlock.mlp = @MLP\nMLP.activation = @silu")
    again = ml.load(
        tmp_path / "saved.gin",
        "DecoderBlock.mlp = @MLP\nMLP.activation = @silu\nDecoderBlock.mlp_output_norm = @RMSNorm",
    )
    assert "DecoderBlock.mlp_output_norm = @RMSNorm\n" in again.operative
