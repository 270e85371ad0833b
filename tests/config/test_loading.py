"""Files, includes, macros and flags, and one report of all mistakes with places and suggestions."""

import pytest
from small_model import SMALL, build_on_meta, values

from ml.config import ConfigError, ImportedValue, load

TYPOS = {
    "parameter": ("Linear.biass = False", "Linear has no parameter 'biass'; did you mean 'bias'?"),
    "configurable": ("Linaer.bias = False", "there is no configurable 'Linaer'; did you mean 'Linear'?"),
    "configurable in other letters": (
        "linear.bias = False",
        "there is no configurable 'linear'; did you mean 'Linear'?",
    ),
    "scope": ("qeury/Linear.bias = False", "there is no scope 'qeury' in the model; did you mean 'query'?"),
    "index of a scope": ("block_7/Linear.bias = False", "there is no scope 'block_7' in the model"),
    "range of a scope": ("blok_0_to_2/Linear.bias = False", "there is no scope 'blok_0_to_2' in the model"),
    "reference": (
        "DecoderBlock.mlp = @GatedMPL",
        "there is no configurable 'GatedMPL' in @GatedMPL; did you mean 'GatedMLP'?",
    ),
    "macro": (
        "WIDTH = 64\nGatedMLP.intermediate_size = %WIDHT",
        "there is no macro or constant %WIDHT; did you mean 'WIDTH'?",
    ),
    "dot": ("Linear_bias = False", "macro 'Linear_bias' is never used; did you mean 'Linear.bias'?"),
    "literal": (
        "DecoderBlock.norm_position = 'prae'",
        "DecoderBlock.norm_position must be one of 'pre', 'post', not 'prae'",
    ),
    "bare word": ("Linear.bias = false", "false is not a value; did you mean 'False'?"),
    "bare string": ("DecoderBlock.norm_position = pre", "pre is not a value: write 'pre' for a string"),
    "infinity": ("RMSNorm.epsilon = inf", "inf is not a gin literal; write %math.inf"),
    "open bracket": ("LanguageModel.lr_scale = [1.0", "cannot be read"),
    "no value": ("Linear.bias", "cannot be read: Couldn't parse statement"),
    "import": ("import no_such_module", "there is no module 'no_such_module'"),
    "unread macro": ("SIZE = 3", "macro 'SIZE' is never used"),
    "layer": ("juniper.layer = 'defaults'", "juniper.layer must be one of"),
}


@pytest.mark.parametrize(("text", "message"), TYPOS.values(), ids=TYPOS)
def test_a_typo_is_an_error_with_its_place_and_a_suggestion(problems, text, message):
    found = problems(text)
    assert any(message in problem and problem.startswith("--gin_bindings[1]") for problem in found), found


def test_a_missing_file_is_an_error_that_suggests_an_existing_one(problems, tmp_path):
    (tmp_path / "small.gin").write_text("Linear.bias = False\n")
    (found,) = problems(files=["smal.gin"], search_path=[tmp_path])
    assert found == "there is no configuration file 'smal.gin'; did you mean 'small.gin'?"


def test_a_missing_include_is_an_error_at_the_include(problems, tmp_path):
    (tmp_path / "main.gin").write_text("Linear.bias = False\n\ninclude 'othr.gin'\n")
    (tmp_path / "other.gin").write_text("")
    (found,) = problems(files=[tmp_path / "main.gin"])
    assert found.endswith("main.gin:3: there is no configuration file 'othr.gin'; did you mean 'other.gin'?")


def test_seven_errors_in_two_files_are_in_one_report_in_order(problems, tmp_path):
    first, second = tmp_path / "first.gin", tmp_path / "second.gin"
    first.write_text(
        "Linear.biass = False\nLinear.bias = 1\nlayer/Linear.bias = True\nRMSNorm.epsilon = [\n"
        f"include '{second.name}'\n"
    )
    second.write_text(
        "# a comment\nNoSuch.thing = 1\nAttention.num_kv_heads = 3\nGatedMLP.intermediate_size = %NOTHING\n"
    )
    found = problems(files=[first])
    expected = [
        "first.gin:1: Linear has no parameter 'biass'",
        "first.gin:2: Linear.bias must be bool, not 1 (int)",
        "first.gin:3: there is no scope 'layer' in the model",
        "first.gin:4: cannot be read",
        "second.gin:2: there is no configurable 'NoSuch'",
        "second.gin:3: Attention.num_kv_heads must divide num_heads (4), not 3",
        "second.gin:4: there is no macro or constant %NOTHING",
    ]
    assert len(found) == 7
    for problem, start in zip(found, expected, strict=True):
        assert start in problem


def test_the_report_counts_the_errors_and_quotes_the_statements(load_model):
    with pytest.raises(ConfigError) as caught:
        load_model("Linear.biass = False\nLinear.bias = 'no'")
    text = str(caught.value)
    assert text.startswith("2 errors in the configuration:")
    assert "--gin_bindings[1]:1: Linear has no parameter 'biass'" in text
    assert "      Linear.biass = False" in text


def test_reading_continues_after_an_error(problems):
    found = problems(
        "Linear.bias = tru\nRMSNorm.epsilon = 'x'\nGatedMLP.intermediate_size = [1,\n  2\nLinear.biass = 1"
    )
    assert "tru is not a value" in found[0]
    assert any("RMSNorm.epsilon must be float" in p for p in found)
    assert any(":3: cannot be read" in p for p in found)


def test_an_include_is_found_in_the_folder_of_the_including_file_first(load_model, tmp_path, monkeypatch):
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "main.gin").write_text("include 'part.gin'\n")
    (inner / "part.gin").write_text("Linear.bias = False\n")
    (tmp_path / "part.gin").write_text("Linear.bias = True\n")
    monkeypatch.chdir(tmp_path)
    config = load_model(files=["inner/main.gin"])
    assert set(values(config, "Linear", "bias").values()) == {"False"}


def test_files_are_found_as_given_then_here_then_on_the_search_path_then_among_the_shipped(
    load_model, tmp_path, monkeypatch
):
    places = [tmp_path / name for name in ("here", "search", "shipped")]
    for size, place in zip((64, 128, 192), places, strict=True):
        place.mkdir()
        (place / "size.gin").write_text(f"GatedMLP.intermediate_size = {size}\n")
    monkeypatch.chdir(places[0])
    found = []
    for place in places:
        config = load_model(files=["size.gin"], search_path=[places[1]], shipped=places[2])
        found.append(values(config, "GatedMLP", "intermediate_size")["decoder/block_0/mlp"])
        (place / "size.gin").unlink()
    assert found == ["64", "128", "192"]


def test_an_include_cycle_is_named(problems, tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.gin").write_text(f"include '{other}.gin'\n")
    (found,) = problems(files=[tmp_path / "a.gin"])
    assert "b.gin:1: include cycle:" in found
    assert found.count("includes") == 2


def test_a_macro_may_be_read_before_it_is_defined_and_the_last_definition_counts(load_model):
    config = load_model("GatedMLP.intermediate_size = %SIZE", "SIZE = 64", "SIZE = 96")
    assert set(values(config, "GatedMLP", "intermediate_size").values()) == {"96"}


def test_macros_that_define_each_other_are_an_error(problems):
    found = problems("A = %B\nB = %A\nGatedMLP.intermediate_size = %A")
    assert any("macros are defined in a cycle: %A -> %B -> %A" in problem for problem in found)


def test_a_macro_with_the_name_of_a_constant_is_an_error(problems):
    assert any("has the name of a constant" in problem for problem in problems("inf = 3\nRMSNorm.epsilon = %inf"))


def test_blocks_and_continuation_lines_are_read_as_gin_reads_them(load_model):
    config = load_model(
        "query/Linear:\n  bias = False\n  lr_scale = 0.5\n\nLanguageModel.tie_word_embeddings = (\n  True)\n"
    )
    assert values(config, "Linear", "bias")["decoder/block_0/mixer/query"] == "False"
    assert values(config, "Linear", "lr_scale")["decoder/block_0/mixer/query"] == "0.5"
    assert values(config, "LanguageModel", "tie_word_embeddings") == {"": "True"}


def test_a_required_value_is_an_error_until_set(tmp_path):
    with pytest.raises(ConfigError, match=r"LanguageModel.vocab_size must be set, and nothing sets it"):
        load((), ["LanguageModel.hidden_size = 4"], root=build_on_meta)


def test_all_required_values_are_reported_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load((), ["block_3/Linear.bias = True"], root=build_on_meta)
    assert [str(p).split(" must be set")[0] for p in caught.value.problems] == [
        "LanguageModel.vocab_size",
        "LanguageModel.hidden_size",
        "Repeat.num_blocks",
        "Attention.num_heads",
    ]


def test_a_file_can_require_a_value_that_a_later_one_sets(tmp_path):
    file = tmp_path / "base.gin"
    file.write_text("GatedMLP.intermediate_size = %gin.REQUIRED\n")
    with pytest.raises(ConfigError, match=r"base.gin:1: GatedMLP.intermediate_size must be set, and nothing sets it"):
        load(file, SMALL, root=build_on_meta)
    config = load(file, [SMALL, "GatedMLP.intermediate_size = 64"], root=build_on_meta)
    assert set(values(config, "GatedMLP", "intermediate_size").values()) == {"64"}


def test_a_requirement_is_met_by_a_more_specific_binding_and_by_an_imported_value(tmp_path):
    file = tmp_path / "base.gin"
    file.write_text("GatedMLP.intermediate_size = %gin.REQUIRED\n")
    specific = load(file, [SMALL, "mlp/GatedMLP.intermediate_size = 64"], root=build_on_meta)
    value = ImportedValue("GatedMLP.intermediate_size", 64, "config.json#intermediate_size")
    imported = load(file, SMALL, root=build_on_meta, imported=[value])
    for config in (specific, imported):
        assert set(values(config, "GatedMLP", "intermediate_size").values()) == {"64"}


def test_two_configurations_are_independent_even_after_an_error(load_model):
    with_bias, without = load_model("Linear.bias = True"), load_model("Linear.bias = False")
    with pytest.raises(ConfigError):
        load_model("Linear.bias = None")
    third = load_model("query/Linear.bias = False")

    def biases(config):
        return sum(name.endswith("bias") for name, _ in config.build(build_on_meta).named_parameters())

    assert [biases(c) for c in (with_bias, without, third, with_bias)] == [35, 0, 30, 35]


def test_outside_a_build_layers_are_plain_python():
    from ml.layers import Linear

    assert Linear(3, 4, bias=False).bias is None
    assert Linear(3, 4).bias is not None
